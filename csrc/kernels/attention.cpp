#include "kernels/attention.h"

#include <algorithm>
#include <numeric>

namespace sdrt {
namespace {

constexpr size_t kAlign = 64;     // bytes of a cache line, and of the widest vector
constexpr int64_t kChunk = 256;   // keys that one task packs; a multiple of every panel's width
constexpr int kMostColumns = 32;  // of a panel

size_t aligned(size_t bytes) {
    return (bytes + kAlign - 1) / kAlign * kAlign;
}

// Scratch of the thread that calls. It carries nothing from one call to the next, and stays because
// fresh pages would cost more than the work.
char* scratch(size_t bytes) {
    thread_local Room room;
    return room.take(bytes);
}

// The keys of one row of the batch that are seen, and how they are packed.
struct Seen {
    std::vector<int64_t> keys;
    int64_t padded = 0;
};

std::vector<Seen> seen_by(const MatrixKernel& kernel, const AttentionShape& s, const float* mask) {
    std::vector<Seen> all(s.batch);
    for (int64_t b = 0; b < s.batch; ++b) {
        std::vector<int64_t>& keys = all[b].keys;
        keys.reserve(s.keys);
        for (int64_t j = 0; j < s.keys; ++j) {
            if (mask == nullptr || mask[b * s.keys + j] == 0.0f) keys.push_back(j);
        }
        all[b].padded = kernel.panels(keys.size()) * kernel.columns;
    }
    return all;
}

struct Packed {
    char *keys, *values;  // of one head
};

void pack_chunk(const MatrixKernel& kernel, const Seen& seen, int64_t begin, int64_t size,
                const float* k, const float* v, const Packed& to) {
    const auto count = static_cast<int64_t>(seen.keys.size());
    const int64_t end = std::min(begin + kChunk, count);
    const float* rows[kMostColumns];
    for (int64_t j = begin; j < end; j += kernel.columns) {
        const int few = static_cast<int>(std::min<int64_t>(kernel.columns, end - j));
        for (int i = 0; i < few; ++i) rows[i] = k + seen.keys[j + i] * size;
        kernel.pack_transposed(rows, few, size,
                               to.keys + j / kernel.columns * kernel.panel_bytes(size));
    }
    std::vector<const float*> values(end);
    for (int64_t first = 0; first < size; first += kernel.columns) {
        for (int64_t j = begin; j < end; ++j) values[j] = v + seen.keys[j] * size + first;
        const int few = static_cast<int>(std::min<int64_t>(kernel.columns, size - first));
        kernel.pack(values.data(), begin, end, few, count,
                    to.values + first / kernel.columns * kernel.panel_bytes(count));
    }
}

// Rows of q [rows, size] -> out, whose rows are `ldo` apart.
void attend(const MatrixKernel& kernel, const Seen& seen, const Packed& packed, const float* q,
            int rows, int64_t size, float* out, int64_t ldo) {
    const auto count = static_cast<int64_t>(seen.keys.size());
    const int64_t ld = seen.padded + 16;  // so that the rows do not fall on each other in a cache
    const size_t scores = aligned(kTileRows * ld * sizeof(float));
    const size_t work = std::max(kernel.scratch_bytes(size), kernel.scratch_bytes(count));
    char* memory = scratch(scores + work);
    auto* weights = reinterpret_cast<float*>(memory);
    float scale[kTileRows];
    kernel.product(q, size, rows, size, packed.keys, seen.padded, nullptr, weights, ld,
                   memory + scores);
    kernel.exponentials(weights, ld, rows, count, seen.padded, scale);
    kernel.product(weights, ld, rows, count, packed.values, size, nullptr, out, ldo,
                   memory + scores);
    for (int r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < size; ++i) out[r * ldo + i] *= scale[r];
    }
}

}  // namespace

char* Room::take(size_t bytes) {
    if (bytes_.size() < bytes + kAlign) bytes_.resize(bytes + kAlign);
    const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
    return bytes_.data() + (kAlign - address % kAlign) % kAlign;
}

Linear::Linear(const MatrixKernel& kernel, const float* weight, const float* bias, int64_t outputs,
               int64_t inputs, bool gelu)
    : kernel_(kernel),
      outputs_(outputs),
      inputs_(inputs),
      gelu_(gelu),
      bias_(bias, bias + outputs) {
    const size_t panel = kernel.panel_bytes(inputs);
    panels_ = room_.take(kernel.panels(outputs) * panel);
    const float* rows[kMostColumns];
    for (int64_t first = 0; first < outputs; first += kernel.columns) {
        const int few = static_cast<int>(std::min<int64_t>(kernel.columns, outputs - first));
        for (int i = 0; i < few; ++i) rows[i] = weight + (first + i) * inputs;
        kernel.pack_transposed(rows, few, inputs, panels_ + first / kernel.columns * panel);
    }
}

void Linear::operator()(const float* x, int64_t groups, int64_t rows, const float* gate,
                        const float* residual, float* y, const Loop& loop) const {
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    loop(groups * tiles, [&](int64_t task) {
        const int64_t group = task / tiles, start = task % tiles * kTileRows;
        const int64_t first = group * rows + start;
        const int few = static_cast<int>(std::min<int64_t>(kTileRows, rows - start));
        Finish finish{bias_.data(), nullptr, nullptr, gelu_};
        if (gate != nullptr) finish.gate = gate + group * outputs_;
        if (residual != nullptr) finish.residual = residual + first * outputs_;
        kernel_.product(x + first * inputs_, inputs_, few, inputs_, panels_, outputs_, &finish,
                        y + first * outputs_, outputs_, scratch(kernel_.scratch_bytes(inputs_)));
    });
}

void modulate(const MatrixKernel& kernel, const float* x, int64_t groups, int64_t rows,
              int64_t width, float eps, const float* scale, const float* shift, float* y,
              const Loop& loop) {
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    loop(groups * tiles, [&](int64_t task) {
        const int64_t group = task / tiles, start = task % tiles * kTileRows;
        const int few = static_cast<int>(std::min<int64_t>(kTileRows, rows - start));
        const int64_t offset = (group * rows + start) * width;
        kernel.modulate(x + offset, few, width, eps, scale + group * width, shift + group * width,
                        y + offset);
    });
}

void split_heads(const MatrixKernel& kernel, const Heads& s, const float* x, const float* weight,
                 const float* rope, float* y, const Loop& loop) {
    const int64_t tiles = (s.tokens + kTileRows - 1) / kTileRows;
    const int64_t pairs = s.size / 2, width = s.heads * s.size;
    loop(s.batch * tiles, [&](int64_t task) {
        const int64_t b = task / tiles, start = task % tiles * kTileRows;
        for (int64_t t = start; t < std::min(start + kTileRows, s.tokens); ++t) {
            const float* cosine = rope == nullptr ? nullptr : rope + (2 * b * s.tokens + t) * pairs;
            const float* sine = rope == nullptr ? nullptr : cosine + s.tokens * pairs;
            kernel.split_heads(x + (b * s.tokens + t) * width, s.heads, s.size, s.eps, weight,
                               cosine, sine, s.factor, y + (b * s.heads * s.tokens + t) * s.size,
                               s.tokens * s.size);
        }
    });
}

void attention(const MatrixKernel& kernel, const AttentionShape& s, const float* q, const float* k,
               const float* v, const float* mask, float* out, Room& room, const Loop& loop) {
    const std::vector<Seen> seen = seen_by(kernel, s, mask);
    const int64_t chunks = (s.keys + kChunk - 1) / kChunk;
    const int64_t tiles = (s.queries + kTileRows - 1) / kTileRows;
    const size_t keys = kernel.panels(s.keys) * kernel.panel_bytes(s.size);
    const size_t values = kernel.panels(s.size) * kernel.panel_bytes(s.keys);
    char* memory = room.take(s.batch * s.heads * (keys + values));
    const auto packed = [&](int64_t head) {
        char* first = memory + head * (keys + values);
        return Packed{first, first + keys};
    };
    loop(s.batch * s.heads * chunks, [&](int64_t task) {
        const int64_t head = task / chunks, begin = task % chunks * kChunk;
        const Seen& visible = seen[head / s.heads];
        if (begin >= static_cast<int64_t>(visible.keys.size())) return;
        const int64_t offset = head * s.keys * s.size;
        pack_chunk(kernel, visible, begin, s.size, k + offset, v + offset, packed(head));
    });
    loop(s.batch * s.heads * tiles, [&](int64_t task) {
        const int64_t head = task / tiles, first = task % tiles * kTileRows;
        const int64_t row = head / s.heads * s.queries + first, width = s.heads * s.size;
        const int few = static_cast<int>(std::min<int64_t>(kTileRows, s.queries - first));
        attend(kernel, seen[head / s.heads], packed(head), q + (head * s.queries + first) * s.size,
               few, s.size, out + row * width + head % s.heads * s.size, width);
    });
}

}  // namespace sdrt
