// The table of a file's kernels, included after it: HOST_KERNELS lists their names as KERNEL(name).

#include <utility>

namespace host {
template <class T>
struct Name;
#define HOST_TYPE(type, name)                                                      \
  template <> struct Name<type> { static constexpr const char* is = name; };       \
  template <> struct Name<type*> { static constexpr const char* is = name "*"; };  \
  template <> struct Name<const type*> { static constexpr const char* is = "const " name "*"; };
HOST_TYPE(float, "float32")
HOST_TYPE(__half, "float16")
HOST_TYPE(__nv_bfloat16, "bfloat16")
HOST_TYPE(int, "int32")
HOST_TYPE(unsigned, "uint32")
HOST_TYPE(long, "int64")
HOST_TYPE(unsigned long, "uint64")
HOST_TYPE(long long, "int64")
HOST_TYPE(unsigned long long, "uint64")
HOST_TYPE(signed char, "int8")
HOST_TYPE(unsigned char, "uint8")
HOST_TYPE(unsigned short, "uint16")

template <class... T>
const char* const* parameters(void (*)(T...)) {
  static const char* const names[] = {Name<T>::is..., 0};
  return names;
}
template <class... T, size_t... i>
void call_with(void (*kernel)(T...), void** args, std::index_sequence<i...>) { kernel(*(T*)args[i]...); }
template <class... T>
void call(void (*kernel)(T...), void** args) { call_with(kernel, args, std::index_sequence_for<T...>()); }

struct Kernel {
  const char* name;
  const char* const* parameters;
  void (*call)(void**);
};
#define KERNEL(name) {#name, parameters(name), [](void** args) { call(name, args); }},
const Kernel kernels[] = {HOST_KERNELS{}};
}  // namespace host

#define HOST_EXPORT extern "C" __attribute__((visibility("default")))
HOST_EXPORT const char* host_name(int i) { return host::kernels[i].name; }  // 0 after the last
HOST_EXPORT const char* host_parameter(int i, int k) { return host::kernels[i].parameters[k]; }
HOST_EXPORT const char* host_run(int i, const unsigned* grid, const unsigned* block, void** args, unsigned long long order) {
  return host::run(host::kernels[i].call, grid, block, args, order, FLUSH);
}
