// The noise itself, as an array.
#pragma once

#include "array.h"
#include "kernels/philox.h"

namespace sdrt {

void philox_normal_host(const NoiseKey& key, const Array& out, int threads);

}  // namespace sdrt
