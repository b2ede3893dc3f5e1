// Element-wise host ops work on blocks that stay in the first-level cache: load as float32 from any
// format and strides, compute, store. Element indices are in C order.
#pragma once

#include "array.h"

namespace sdrt {

constexpr int64_t kBlock = 1024;  // elements; a multiple of 4, so a block starts a Philox group

void load_block(const Array& a, int64_t first, int64_t count, float* out);
void store_block(const float* values, int64_t first, int64_t count, const Array& a);

}  // namespace sdrt
