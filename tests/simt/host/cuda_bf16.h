#include "floats.h"
