// RMS difference of two pictures scaled to [-1, 1]: the reference's measure of motion.
#pragma once

#include "array.h"

namespace sdrt {

// Sum of squared differences of uint8 [H, W, 3] arrays of one shape and any strides: exact.
uint64_t squared_difference(const Array& a, const Array& b);

}  // namespace sdrt
