// A chain of steps that take every row (a token) by itself: what a DiT block does between one
// exchange with other tokens and the next. A thread takes a tile of rows through all steps, so what
// is between them stays in its cache, and threads meet once for the chain instead of once a step.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/attention.h"

namespace sdrt {

// Values are numbered: the inputs first, then the result of each step. -1: absent.
struct Step {
    enum class Kind { linear, modulate, norm, heads, attention };

    Kind kind;
    std::vector<int> operands;
    bool gelu = false;
    int64_t heads = 0;
    float eps = 0, factor = 1;
};

// A step a line, its operands ("-": absent), then what is said of it; B rows of the batch, S
// tokens:
//     linear x weight bias residual gate gelu=0|1
//         residual + gate * activation(x weight^T + bias): x [B, S, I], weight [O, I], bias [O],
//         residual [B, S, O], gate [B, 1, O]; GELU is the one with tanh
//     modulate x scale shift eps=
//         layer normalisation of x [B, S, D], times 1 + scale, plus shift, both [B, 1, D]
//     norm x weight bias eps=
//         layer normalisation times weight [D], plus bias [D]
//     heads x weight rope heads= eps= factor=
//         x [B, S, N*K], normalised by its root mean square times weight [N*K] times factor,
//         complex pairs turned by rope [B, 2, S, K/2] (cosines, sines) -> [B, N, S, K]. Without
//         weight: cut into heads and no more
//     attention q k v mask
//         softmax(q k^T + mask) v: q [B, N, S, K], k and v [B, N, M, K], mask [B, 1, 1, M] of 0 and
//         -inf -> [B, S, N*K]
// Weights, biases and norms are constants. x, residual and q may be results of earlier steps, all
// else is given. Throws std::invalid_argument for anything else.
std::vector<Step> parse_steps(const std::string& text);

struct Tensor {
    float* data = nullptr;
    std::vector<int64_t> shape;
};

class Rows {
  public:
    // `constants` is as long as the inputs; those without data are given to each run.
    Rows(const MatrixKernel& kernel, std::vector<Step> steps, const std::vector<Tensor>& constants);

    ~Rows();

    int inputs() const { return inputs_; }

    // Shapes of the results with these numbers, for inputs of these shapes. Throws
    // std::invalid_argument that names step and operand where something does not fit.
    std::vector<std::vector<int64_t>> shapes(const std::vector<Tensor>& inputs,
                                             const std::vector<int>& results) const;

    // Computes them all; `results` that are not in `outputs` stay in the tiles.
    void run(const std::vector<Tensor>& inputs, const std::vector<int>& results,
             const std::vector<Tensor>& outputs, const Loop& loop);

  private:
    struct Value;
    struct Chain;
    struct Kept;
    struct Place;
    struct Tile {
        int64_t group, first, rows, height;  // row of the batch, first token, tokens, most tokens
        char* memory;
    };

    [[noreturn]] void wrong(size_t step, size_t operand, const std::string& why) const;
    Chain resolve(const std::vector<Tensor>& inputs) const;
    // Gives every result that is no output a place in the tile; returns the bytes of a tile.
    size_t place_results(const Chain& chain, int64_t tile, std::vector<Place>& places) const;
    void execute(size_t step, const Chain& chain, const std::vector<Place>& places,
                 const Attention* attention, const Tile& tile, char* work) const;

    const MatrixKernel& kernel_;
    std::vector<Step> steps_;
    int inputs_;
    std::vector<Kept> kept_;  // by step
    std::mutex busy_;         // packed keys are one run's at a time
    std::vector<Room> rooms_;
};

}  // namespace sdrt
