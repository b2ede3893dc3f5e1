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
    const bool packs = kernel.by_runs == nullptr;
    for (int64_t b = 0; b < s.batch; ++b) {
        std::vector<Run>& runs = seen_[b].runs;
        for (int64_t j = 0; j < s.keys; ++j) {
            if (mask != nullptr && mask[b * s.keys + j] != 0.0f) continue;
            if (packs) {
                seen_[b].keys.push_back(j);
                continue;
            }
            if (runs.empty() || runs.back().end != j) runs.push_back({j, j});
            ++runs.back().end;
        }
    }
    if (!packs) return;
    const int64_t together = kernel.by_blocks != nullptr ? kBlockKeys : kChunk;
    const int64_t chunks = (s.keys + together - 1) / together;
    if (kernel.by_blocks != nullptr) {
        packed_bytes_ = chunks * kernel.by_blocks->block_bytes(s.size);
    } else {
        packed_bytes_ = key_bytes(kernel, s) + kernel.panels(s.size) * kernel.panel_bytes(s.keys);
    }
    packed_ = room.take(s.batch * s.heads * packed_bytes_);
    loop(s.batch * s.heads * chunks, [&](int64_t task) {
        const int64_t head = task / chunks, begin = task % chunks * together;
        const Seen& visible = seen_[head / s.heads];
        const int64_t left = static_cast<int64_t>(visible.keys.size()) - begin;
        if (left <= 0) return;
        const float* const keys = k + head * s.keys * s.size;
        const float* const values = v + head * s.keys * s.size;
        if (kernel.by_blocks == nullptr) return pack(visible, begin, keys, values, packed(head));
        const int few = static_cast<int>(std::min(left, together));
        kernel.by_blocks->pack(
            keys, values, visible.keys.data() + begin, few, s.size,
            packed(head) + begin / together * kernel.by_blocks->block_bytes(s.size));
    });
}

void Attention::operator()(int64_t row, int64_t head, const float* q, int64_t rows, float* out,
                           int64_t ldo, char* work) const {
    const Seen& seen = seen_[row];
    const int64_t place = row * shape_.heads + head, offset = place * shape_.keys * shape_.size;
    for (int64_t r = 0; r < rows; r += kTileRows) {
        const int few = static_cast<int>(std::min<int64_t>(kTileRows, rows - r));
        const float* const from = q + r * shape_.size;
        float* const to = out + r * ldo;
        if (kernel_.by_runs != nullptr) {
            kernel_.by_runs->attend(from, few, shape_.size, k_ + offset, v_ + offset,
                                    seen.runs.data(), seen.runs.size(), to, ldo, work);
        } else if (kernel_.by_blocks != nullptr) {
            kernel_.by_blocks->attend(from, few, shape_.size, packed(place), seen.keys.size(), to,
                                      ldo, work);
        } else {
            attend_panels(seen, packed(place), from, few, to, ldo, work);
        }
    }
}

size_t Attention::work_bytes(const MatrixKernel& kernel, int64_t keys, int64_t size) {
    if (kernel.by_runs != nullptr) return kernel.by_runs->scratch_bytes(size);
    if (kernel.by_blocks != nullptr) return kernel.by_blocks->scratch_bytes(size);
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
        kernel_.by_panels->pack(
            values.data(), begin, end, few, count,
            packed_values + first / kernel_.columns * kernel_.panel_bytes(count));
    }
}

void Attention::attend_panels(const Seen& seen, const char* packed, const float* q, int rows,
                              float* out, int64_t ldo, char* work) const {
    const int64_t size = shape_.size, count = static_cast<int64_t>(seen.keys.size());
    const int64_t wide = padded(kernel_, count), ld = apart(kernel_, count);
    auto* const weights = reinterpret_cast<float*>(work);
    char* const scratch = work + aligned(kTileRows * ld * sizeof(float));
    float scale[kTileRows];
    kernel_.product(q, size, rows, size, packed, wide, nullptr, weights, ld, scratch);
    kernel_.by_panels->exponentials(weights, ld, rows, count, wide, scale);
    kernel_.product(weights, ld, rows, count, packed + key_bytes(kernel_, shape_), size, nullptr,
                    out, ldo, scratch);
    for (int r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < size; ++i) out[r * ldo + i] *= scale[r];
    }
}

}  // namespace sdrt
