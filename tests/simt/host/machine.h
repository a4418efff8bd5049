// A block of CUDA threads on one thread of the processor: each is a fibre, with a stack of its own, which runs until it
// has to wait for others. Blocks run one after another.
//
//     barrier:  wait until all threads of the block are at it (__syncthreads)
//     gather:   wait until all lanes of a mask, but those that have ended, are at it with a value each (shuffles, votes,
//               __syncwarp)
//
// In what order threads and blocks run is a choice (forward, backward, random): what a kernel gives must not depend on
// it. Threads that wait for each other at different places would wait forever, and a barrier takes all threads: that is
// an error.

#pragma once
#include <dlfcn.h>
#include <link.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <xmmintrin.h>

struct dim3 {
  unsigned x, y, z;
};
dim3 threadIdx, blockIdx, blockDim, gridDim;

// Shared memory is what is thread_local: the block's own, and in one piece that can be filled with NaN before a block.
#define __shared__ static thread_local

namespace host {
typedef unsigned long long Word;

enum State { READY, AT_BARRIER, IN_WARP, ENDED };
struct Gathered {
  unsigned lanes;  // that took part
  Word values[32];
};
struct Fibre {
  bool started;
  ucontext_t start;
  jmp_buf at;
  dim3 index;
  State state;
  const char* what;  // it waits for, and in which line of the .cu file
  int line;
  unsigned mask;    // of the lanes that it waits for
  Word value;       // for them
  Gathered result;  // of them
};
const size_t STACK = 1 << 17;
const unsigned MOST = 1024;
Fibre fibres[MOST];
Fibre* self;
unsigned threads;
jmp_buf scheduler, failed;
char message[400];
void (*kernel)(void**);
void** arguments;

[[noreturn]] void fail(const char* format, ...) {
  va_list words;
  va_start(words, format);
  vsnprintf(message, sizeof message, format, words);
  va_end(words);
  longjmp(failed, 1);
}

// Switching: what has called it goes on when its place is jumped to.

__attribute__((noinline)) void wait() {
  if (!_setjmp(self->at)) _longjmp(scheduler, 1);
}

void body() {
  for (;;) {
    kernel(arguments);
    self->state = ENDED;
    wait();
  }
}

__attribute__((noinline)) void resume(Fibre& fibre) {
  self = &fibre;
  threadIdx = fibre.index;
  if (_setjmp(scheduler)) return;
  if (fibre.started) _longjmp(fibre.at, 1);
  fibre.started = true;
  setcontext(&fibre.start);
}

void prepare(Fibre& fibre) {
  if (fibre.started) return;
  getcontext(&fibre.start);
  if (!fibre.start.uc_stack.ss_sp)
    fibre.start.uc_stack.ss_sp = mmap(0, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  fibre.start.uc_stack.ss_size = STACK;
  makecontext(&fibre.start, body, 0);
}

// Waiting

inline void barrier(const char* what, int line) {
  self->state = AT_BARRIER, self->what = what, self->line = line;
  wait();
}

inline unsigned lane() { return (self - fibres) % 32; }

inline const Gathered& gather(unsigned mask, Word value, const char* what, int line) {
  if (!(mask >> lane() & 1)) fail("line %d: %s by lane %u, which is not in its mask %#x", line, what, lane(), mask);
  self->state = IN_WARP, self->what = what, self->line = line, self->mask = mask, self->value = value;
  wait();
  return self->result;
}

// Lets the lanes go on that a lane waits for, if all are there.
void complete(Fibre* warp, const Fibre& f) {
  Gathered all = {};
  for (unsigned l = 0; l < 32 && warp + l < fibres + threads; ++l) {
    const Fibre& other = warp[l];
    if (!(f.mask >> l & 1) || other.state == ENDED) continue;
    if (other.state != IN_WARP || other.mask != f.mask || other.line != f.line || strcmp(other.what, f.what)) return;
    all.lanes |= 1u << l, all.values[l] = other.value;
  }
  for (unsigned l = 0; l < 32; ++l)
    if (all.lanes >> l & 1) warp[l].result = all, warp[l].state = READY;
}

// After a thread has stopped: what did its warp wait for?
void complete_warp(unsigned thread) {
  Fibre *warp = fibres + thread / 32 * 32, &f = fibres[thread];
  if (f.state == IN_WARP) complete(warp, f);
  if (f.state == ENDED)
    for (unsigned l = 0; l < 32 && warp + l < fibres + threads; ++l)
      if (warp[l].state == IN_WARP) complete(warp, warp[l]);
}

void fail_as_all_wait() {
  const Fibre *waiting = 0, *other = 0;
  for (Fibre* f = fibres; f < fibres + threads; ++f)
    if (f->state != ENDED && !waiting) waiting = f;
  for (Fibre* f = fibres; f < fibres + threads; ++f)
    if (f->state == ENDED || f->line != waiting->line || strcmp(f->what, waiting->what)) other = f;
  const dim3 &w = waiting->index, &o = other ? other->index : w;
  fail("block (%u, %u, %u): thread (%u, %u, %u) waits at %s in line %d, and thread (%u, %u, %u) %s%s", blockIdx.x,
            blockIdx.y, blockIdx.z, w.x, w.y, w.z, waiting->what, waiting->line, o.x, o.y, o.z,
            !other ? "with another mask" : other->state == ENDED ? "has ended" : "waits elsewhere, at ",
            other && other->state != ENDED ? other->what : "");
}

// Running

Word random_state;
unsigned below(unsigned n) {  // xorshift64, Marsaglia, "Xorshift RNGs"
  random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
  return random_state % n;
}

// 0, 1, ..., n - 1 as `order` says: 0 forward, 1 backward, else at random.
void arrange(unsigned* list, unsigned n, Word order) {
  for (unsigned i = 0; i < n; ++i) list[i] = order == 1 ? n - 1 - i : i;
  if (order > 1)
    for (unsigned i = n; i > 1; --i) {
      const unsigned j = below(i), kept = list[i - 1];
      list[i - 1] = list[j], list[j] = kept;
    }
}

dim3 place(unsigned i, const dim3& size) { return {i % size.x, i / size.x % size.y, i / size.x / size.y}; }

void run_block(Word order) {
  static unsigned turn[MOST];
  for (unsigned t = 0; t < threads; ++t) fibres[t].state = READY;
  for (;;) {
    arrange(turn, threads, order);
    unsigned ran = 0, at_barrier = 0, ended = 0;
    for (unsigned i = 0; i < threads; ++i)
      if (fibres[turn[i]].state == READY) {
        resume(fibres[turn[i]]);
        complete_warp(turn[i]);
        ++ran;
      }
    for (Fibre* f = fibres; f < fibres + threads; ++f) {
      ended += f->state == ENDED;
      at_barrier += f->state == AT_BARRIER && f->line == fibres[0].line;
    }
    if (ended == threads) return;
    if (at_barrier == threads)
      for (unsigned t = 0; t < threads; ++t) fibres[t].state = READY;
    else if (!ran)
      fail_as_all_wait();
  }
}

// Shared memory: the thread_local variables of this library.
thread_local volatile char first_shared;
struct Piece {
  void* start;
  size_t size;
};
int find_shared(dl_phdr_info* info, size_t, void* piece) {
  bool mine = false;
  size_t size = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& part = info->dlpi_phdr[i];
    const size_t offset = (size_t)&threads - info->dlpi_addr;
    mine |= part.p_type == PT_LOAD && offset - part.p_vaddr < part.p_memsz;
    if (part.p_type == PT_TLS) size = part.p_memsz;
  }
  if (mine) *(Piece*)piece = {info->dlpi_tls_data, size};
  return mine;
}

const unsigned NO_SUBNORMALS = 0x8040;  // of the processor's control register: subnormal results and inputs are taken as zero

// 0, or what is wrong. flush: as CUDA's -ftz=true has it.
const char* run(void (*entry)(void**), const unsigned* grid, const unsigned* block, void** args, Word order, int flush) {
  gridDim = {grid[0], grid[1], grid[2]}, blockDim = {block[0], block[1], block[2]};
  kernel = entry, arguments = args, threads = block[0] * block[1] * block[2], random_state = order;
  first_shared = 0;  // so that there is such memory
  static Piece shared;
  dl_iterate_phdr(find_shared, &shared);
  const unsigned blocks = grid[0] * grid[1] * grid[2], before = _mm_getcsr();
  unsigned* turn = (unsigned*)malloc(blocks * sizeof *turn);
  arrange(turn, blocks, order);
  _mm_setcsr(flush ? before | NO_SUBNORMALS : before & ~NO_SUBNORMALS);
  const char* volatile wrong = 0;
  if (setjmp(failed)) {
    wrong = message;
    for (unsigned t = 0; t < threads; ++t) fibres[t].started = false;
  } else {
    for (unsigned t = 0; t < threads; ++t) {
      fibres[t].index = place(t, blockDim);
      prepare(fibres[t]);
    }
    for (unsigned i = 0; i < blocks; ++i) {
      blockIdx = place(turn[i], gridDim);
      memset(shared.start, 0xFF, shared.size);
      run_block(order);
    }
  }
  _mm_setcsr(before);
  free(turn);
  return wrong;
}
}  // namespace host
