// The checks that operators share. Each raises ArgumentError with the argument's name.
#pragma once

#include <initializer_list>
#include <span>

#include "array.h"

namespace sdrt {

constexpr int64_t kAny = -1;
constexpr int64_t kLargest = 1 << 24;  // pixels along one side of a picture

void check_dtype(const char* name, const Array& a, std::initializer_list<Dtype> allowed);
void check_shape(const char* name, const Array& a, std::initializer_list<int64_t> expected);
void check_same_shape(const char* name, const Array& a, const char* other, const Array& like);
void check_writable(const char* name, const Array& a);
void check_device(const char* name, const Array& a, int device);
void check_host(const char* name, const Array& a);
void check_contiguous(const char* name, const Array& a);
void check_range(const char* name, double value, double least, double most);
void check_threads(int threads);

// uint8 [H, W, 3], H and W at least 1.
void check_frame(const std::string& name, const Array& a);

// uint8 [3 H / 2, W], H and W even: H rows of luma above H / 2 rows of (u, v) pairs.
void check_nv12(const std::string& name, const Array& a);

// The device that all frames are on. Checks each as above; `equal` asks for one size.
int check_frames(std::span<const Array> frames, bool equal);

}  // namespace sdrt
