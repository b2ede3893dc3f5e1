#include "kernels/attention.h"

#include <algorithm>

namespace sdrt {
namespace {

constexpr int64_t kChunk = 256;   // keys that one task packs; a multiple of every panel's width
constexpr int kMostColumns = 32;  // of a panel

int64_t padded(const MatrixKernel& kernel, int64_t keys) {
    return kernel.panels(keys) * kernel.columns;
}

// Floats from one row of scores to the next, so that rows do not fall on each other in a cache.
int64_t apart(const MatrixKernel& kernel, int64_t keys) {
    return padded(kernel, keys) + 16;
}

size_t key_bytes(const MatrixKernel& kernel, const AttentionShape& s) {
    return kernel.panels(s.keys) * kernel.panel_bytes(s.size);
}

}  // namespace

char* Room::take(size_t bytes) {
    if (bytes_.size() < bytes + kAlign) bytes_.resize(bytes + kAlign);
    const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
    return bytes_.data() + (kAlign - address % kAlign) % kAlign;
}

Linear::Linear(const MatrixKernel& kernel, const float* weight, const float* bias, int64_t outputs,
               int64_t inputs)
    : kernel_(kernel), outputs_(outputs), inputs_(inputs), bias_(bias, bias + outputs) {
    const size_t panel = kernel.panel_bytes(inputs);
    panels_ = room_.take(kernel.panels(outputs) * panel);
    const float* rows[kMostColumns];
    for (int64_t first = 0; first < outputs; first += kernel.columns) {
        const int few = static_cast<int>(std::min<int64_t>(kernel.columns, outputs - first));
        for (int i = 0; i < few; ++i) rows[i] = weight + (first + i) * inputs;
        kernel.pack_transposed(rows, few, inputs, panels_ + first / kernel.columns * panel);
    }
}

void Linear::operator()(const float* x, int64_t rows, Finish finish, float* y, char* work) const {
    finish.bias = bias_.data();
    for (int64_t r = 0; r < rows; r += kernel_.most_rows) {
        const int few = static_cast<int>(std::min<int64_t>(kernel_.most_rows, rows - r));
        kernel_.product(x + r * inputs_, inputs_, few, inputs_, panels_, outputs_, &finish,
                        y + r * outputs_, outputs_, work);
        if (finish.residual != nullptr) finish.residual += kernel_.most_rows * outputs_;
    }
}

Attention::Attention(const MatrixKernel& kernel, const AttentionShape& s, const float* k,
                     const float* v, const float* mask, Room& room, const Loop& loop)
    : kernel_(kernel), shape_(s), k_(k), v_(v), seen_(s.batch) {
    for (int64_t b = 0; b < s.batch; ++b) {
        std::vector<Run>& runs = seen_[b].runs;
        for (int64_t j = 0; j < s.keys; ++j) {
            if (mask != nullptr && mask[b * s.keys + j] != 0.0f) continue;
            if (runs.empty() || runs.back().end != j) runs.push_back({j, j});
            ++runs.back().end;
            if (kernel.attend == nullptr) seen_[b].keys.push_back(j);
        }
    }
    if (kernel.attend != nullptr) return;
    packed_bytes_ = key_bytes(kernel, s) + kernel.panels(s.size) * kernel.panel_bytes(s.keys);
    packed_ = room.take(s.batch * s.heads * packed_bytes_);
    const int64_t chunks = (s.keys + kChunk - 1) / kChunk;
    loop(s.batch * s.heads * chunks, [&](int64_t task) {
        const int64_t head = task / chunks, begin = task % chunks * kChunk;
        const Seen& visible = seen_[head / s.heads];
        if (begin >= static_cast<int64_t>(visible.keys.size())) return;
        const int64_t offset = head * s.keys * s.size;
        pack(visible, begin, k + offset, v + offset, packed(head));
    });
}

void Attention::operator()(int64_t row, int64_t head, const float* q, int64_t rows, float* out,
                           int64_t ldo, char* work) const {
    const Seen& seen = seen_[row];
    const int64_t place = row * shape_.heads + head, offset = place * shape_.keys * shape_.size;
    for (int64_t r = 0; r < rows; r += kTileRows) {
        const int few = static_cast<int>(std::min<int64_t>(kTileRows, rows - r));
        const float* const from = q + r * shape_.size;
        if (kernel_.attend == nullptr) {
            attend_packed(seen, packed(place), from, few, out + r * ldo, ldo, work);
        } else {
            kernel_.attend(from, few, shape_.size, k_ + offset, v_ + offset, seen.runs.data(),
                           seen.runs.size(), out + r * ldo, ldo, work);
        }
    }
}

size_t Attention::work_bytes(const MatrixKernel& kernel, int64_t keys, int64_t size) {
    if (kernel.attend != nullptr) return kernel.attend_bytes(size);
    return aligned(kTileRows * apart(kernel, keys) * sizeof(float)) +
           std::max(kernel.scratch_bytes(size), kernel.scratch_bytes(keys));
}

void Attention::pack(const Seen& seen, int64_t begin, const float* k, const float* v,
                     char* packed) const {
    const int64_t size = shape_.size, count = static_cast<int64_t>(seen.keys.size());
    const int64_t end = std::min(begin + kChunk, count);
    char* const packed_values = packed + key_bytes(kernel_, shape_);
    const float* rows[kMostColumns];
    for (int64_t j = begin; j < end; j += kernel_.columns) {
        const int few = static_cast<int>(std::min<int64_t>(kernel_.columns, end - j));
        for (int i = 0; i < few; ++i) rows[i] = k + seen.keys[j + i] * size;
        kernel_.pack_transposed(rows, few, size,
                                packed + j / kernel_.columns * kernel_.panel_bytes(size));
    }
    std::vector<const float*> values(end);
    for (int64_t first = 0; first < size; first += kernel_.columns) {
        for (int64_t j = begin; j < end; ++j) values[j] = v + seen.keys[j] * size + first;
        const int few = static_cast<int>(std::min<int64_t>(kernel_.columns, size - first));
        kernel_.pack(values.data(), begin, end, few, count,
                     packed_values + first / kernel_.columns * kernel_.panel_bytes(count));
    }
}

void Attention::attend_packed(const Seen& seen, const char* packed, const float* q, int rows,
                              float* out, int64_t ldo, char* work) const {
    const int64_t size = shape_.size, count = static_cast<int64_t>(seen.keys.size());
    const int64_t wide = padded(kernel_, count), ld = apart(kernel_, count);
    auto* const weights = reinterpret_cast<float*>(work);
    char* const scratch = work + aligned(kTileRows * ld * sizeof(float));
    float scale[kTileRows];
    kernel_.product(q, size, rows, size, packed, wide, nullptr, weights, ld, scratch);
    kernel_.exponentials(weights, ld, rows, count, wide, scale);
    kernel_.product(weights, ld, rows, count, packed + key_bytes(kernel_, shape_), size, nullptr,
                    out, ldo, scratch);
    for (int r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < size; ++i) out[r * ldo + i] *= scale[r];
    }
}

}  // namespace sdrt
