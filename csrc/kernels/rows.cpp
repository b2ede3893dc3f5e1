#include "kernels/rows.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <thread>

namespace sdrt {
namespace {

using Shape = std::vector<int64_t>;

struct Form {
    Step::Kind kind;
    std::string_view name;
    std::vector<const char*> operands;
    std::vector<bool> optional;
    std::vector<std::string_view> parameters;
};

const std::vector<Form>& forms() {
    static const std::vector<Form> all = {
        {Step::Kind::linear,
         "linear",
         {"x", "weight", "bias", "residual", "gate"},
         {false, false, false, true, true},
         {"gelu"}},
        {Step::Kind::modulate, "modulate", {"x", "scale", "shift"}, {false, false, false}, {"eps"}},
        {Step::Kind::norm, "norm", {"x", "weight", "bias"}, {false, false, false}, {"eps"}},
        {Step::Kind::heads,
         "heads",
         {"x", "weight", "rope"},
         {false, true, true},
         {"heads", "eps", "factor"}},
        {Step::Kind::attention,
         "attention",
         {"q", "k", "v", "mask"},
         {false, false, false, true},
         {}},
    };
    return all;
}

const Form& form_of(const Step& step) {
    return forms()[static_cast<size_t>(step.kind)];
}

[[noreturn]] void refuse(const std::string& why) {
    throw std::invalid_argument(why);
}

std::string text_of(const Shape& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

template <typename Number>
Number number_of(std::string_view text, const std::string& line) {
    Number value{};
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc{} || stop != end) {
        refuse("step \"" + line + "\": got " + std::string(text) + ", expected a number");
    }
    return value;
}

void say(Step& step, std::string_view name, std::string_view value, const std::string& line) {
    if (name == "gelu") step.gelu = number_of<int>(value, line) != 0;
    if (name == "heads") step.heads = number_of<int64_t>(value, line);
    if (name == "eps") step.eps = number_of<float>(value, line);
    if (name == "factor") step.factor = number_of<float>(value, line);
}

Step parse_step(const std::string& line) {
    std::istringstream words(line);
    std::string word;
    words >> word;
    const auto form =
        std::find_if(forms().begin(), forms().end(), [&](const Form& f) { return f.name == word; });
    if (form == forms().end()) refuse("step \"" + line + "\": no such kind");
    Step step;
    step.kind = form->kind;
    for (size_t i = 0; i < form->operands.size(); ++i) {
        if (!(words >> word)) refuse("step \"" + line + "\": no " + form->operands[i]);
        if (word == "-" && !form->optional[i]) {
            refuse("step \"" + line + "\": " + form->operands[i] + " may not be absent");
        }
        step.operands.push_back(word == "-" ? -1 : number_of<int>(word, line));
    }
    for (const std::string_view name : form->parameters) {
        if (!(words >> word) || word.rfind(std::string(name) + "=", 0) != 0) {
            refuse("step \"" + line + "\": expected " + std::string(name) + "=");
        }
        say(step, name, std::string_view(word).substr(name.size() + 1), line);
    }
    if (words >> word) refuse("step \"" + line + "\": did not expect " + word);
    return step;
}

// Rows that a thread takes through all steps together. The weights come by once a tile, so few and
// large ones; but a task for every core. No result depends on it.
int64_t tile_rows(int64_t batch, int64_t tokens) {
    static const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
    for (int64_t rows = kMostRows; rows > kTileRows; rows /= 2) {
        if (batch * ((tokens + rows - 1) / rows) >= cores) return rows;
    }
    return kTileRows;
}

// Scratch of the thread that calls. It carries nothing from one call to the next, and stays because
// fresh pages would cost more than the work.
char* scratch(size_t bytes) {
    thread_local Room room;
    return room.take(bytes);
}

}  // namespace

std::vector<Step> parse_steps(const std::string& text) {
    std::vector<Step> steps;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) steps.push_back(parse_step(line));
    if (steps.empty()) refuse("got no steps, expected at least one");
    return steps;
}

// Rows of values: [.., S, width], or cut into heads, [B, N, S, K].
struct Rows::Value {
    int64_t width = 0, heads = 0;

    int64_t size() const { return width / heads; }
};

// What the shapes of the inputs decide.
struct Rows::Chain {
    Shape lead;  // of results that are not cut: all dimensions but the last
    int64_t batch = -1, tokens = 0;
    std::vector<Value> values;  // inputs that are rows, and results
};

// What steps keep of their constants.
struct Rows::Kept {
    std::unique_ptr<Linear> linear;
    std::vector<float> weight, bias;
};

Rows::Rows(const MatrixKernel& kernel, std::vector<Step> steps,
           const std::vector<Tensor>& constants)
    : kernel_(kernel), steps_(std::move(steps)), inputs_(static_cast<int>(constants.size())) {
    rooms_.resize(steps_.size());
    for (size_t n = 0; n < steps_.size(); ++n) {
        const Step& step = steps_[n];
        for (size_t i = 0; i < step.operands.size(); ++i) {
            const bool rows = i == 0 || (step.kind == Step::Kind::linear && i == 3);
            const int most = rows ? inputs_ + static_cast<int>(n) : inputs_;
            if (step.operands[i] >= most || step.operands[i] < -1) wrong(n, i, "no such value");
        }
        const auto constant = [&](size_t i, size_t rank) -> const Tensor& {
            const Tensor& tensor = constants[step.operands[i]];
            if (tensor.data == nullptr) wrong(n, i, "not a constant");
            if (tensor.shape.size() != rank) wrong(n, i, "got " + text_of(tensor.shape));
            return tensor;
        };
        const auto vector = [&](size_t i) {
            const Tensor& tensor = constant(i, 1);
            return std::vector<float>(tensor.data, tensor.data + tensor.shape[0]);
        };
        Kept& kept = kept_.emplace_back();
        if (step.kind == Step::Kind::linear) {
            const Tensor &weight = constant(1, 2), &bias = constant(2, 1);
            if (bias.shape[0] != weight.shape[0]) {
                wrong(n, 2, "got " + text_of(bias.shape) + " beside " + text_of(weight.shape));
            }
            kept.linear = std::make_unique<Linear>(kernel, weight.data, bias.data, weight.shape[0],
                                                   weight.shape[1]);
        } else if (step.kind == Step::Kind::norm) {
            kept.weight = vector(1);
            for (float& w : kept.weight) w -= 1.0f;  // the kernel's factor is 1 + scale
            kept.bias = vector(2);
        } else if (step.kind == Step::Kind::heads && step.operands[1] >= 0) {
            kept.weight = vector(1);
        }
    }
}

Rows::~Rows() = default;

void Rows::wrong(size_t n, size_t operand, const std::string& why) const {
    const Form& form = form_of(steps_[n]);
    refuse("step " + std::to_string(n) + " (" + std::string(form.name) +
           "): " + form.operands[operand] + ": " + why);
}

Rows::Chain Rows::resolve(const std::vector<Tensor>& inputs) const {
    Chain chain;
    chain.values.resize(inputs_ + steps_.size());
    const auto rows = [&](size_t n, size_t i, bool cut) -> const Value& {
        const int id = steps_[n].operands[i];
        Value& value = chain.values[id];
        if (id < inputs_) {
            const Shape& shape = inputs[id].shape;
            if (cut ? shape.size() != 4 : shape.size() < 2) wrong(n, i, "got " + text_of(shape));
            Shape lead(shape.begin(), shape.end() - 1);
            if (cut) lead = {shape[0], shape[2]};
            const int64_t tokens = std::accumulate(lead.begin() + 1, lead.end(), int64_t{1},
                                                   std::multiplies<int64_t>());
            if (chain.batch < 0) chain.lead = lead, chain.batch = lead[0], chain.tokens = tokens;
            if (lead[0] != chain.batch || tokens != chain.tokens) {
                wrong(n, i,
                      "got " + text_of(shape) + ", expected " + std::to_string(chain.batch) +
                          " x " + std::to_string(chain.tokens) + " rows");
            }
            value = cut ? Value{shape[1] * shape[3], shape[1]} : Value{shape.back(), 0};
        }
        if ((value.heads > 0) != cut) wrong(n, i, cut ? "not cut into heads" : "cut into heads");
        return value;
    };
    const auto width = [&](size_t n, size_t i, int64_t got, int64_t expected) {
        if (got != expected) {
            wrong(n, i,
                  "got width " + std::to_string(got) + ", expected " + std::to_string(expected));
        }
    };
    const auto given = [&](size_t n, size_t i, const Shape& expected) {
        const int id = steps_[n].operands[i];
        if (id < 0 || inputs[id].shape == expected) return;
        wrong(n, i, "got " + text_of(inputs[id].shape) + ", expected " + text_of(expected));
    };
    for (size_t n = 0; n < steps_.size(); ++n) {
        const Step& step = steps_[n];
        const Value x = rows(n, 0, step.kind == Step::Kind::attention);
        Value& result = chain.values[inputs_ + n];
        result = {x.width, 0};
        const Shape part = {chain.batch, 1, x.width};
        switch (step.kind) {
            case Step::Kind::linear:
                width(n, 0, x.width, kept_[n].linear->inputs());
                result.width = kept_[n].linear->outputs();
                if (step.operands[3] >= 0) width(n, 3, rows(n, 3, false).width, result.width);
                given(n, 4, {chain.batch, 1, result.width});
                break;
            case Step::Kind::modulate:
                given(n, 1, part);
                given(n, 2, part);
                break;
            case Step::Kind::norm:
                width(n, 1, kept_[n].weight.size(), x.width);
                width(n, 2, kept_[n].bias.size(), x.width);
                break;
            case Step::Kind::heads:
                if (step.heads < 1 || x.width % step.heads != 0) {
                    wrong(n, 0,
                          "got width " + std::to_string(x.width) + ", expected a multiple of " +
                              std::to_string(step.heads) + " heads");
                }
                result.heads = step.heads;
                if (step.operands[1] >= 0) width(n, 1, kept_[n].weight.size(), x.width);
                if (step.operands[2] >= 0 && (step.operands[1] < 0 || result.size() % 2 != 0)) {
                    wrong(n, 2, "expected none without a weight, or for an odd size of heads");
                }
                given(n, 2, {chain.batch, 2, chain.tokens, result.size() / 2});
                break;
            case Step::Kind::attention: {
                const Shape& keys = inputs[step.operands[1]].shape;
                const int64_t count = keys.size() == 4 ? keys[2] : 1;
                given(n, 1, {chain.batch, x.heads, count, x.size()});
                given(n, 2, keys);
                given(n, 3, {chain.batch, 1, 1, count});
                break;
            }
        }
    }
    return chain;
}

std::vector<Shape> Rows::shapes(const std::vector<Tensor>& inputs,
                                const std::vector<int>& results) const {
    const Chain chain = resolve(inputs);
    std::vector<Shape> all;
    for (const int id : results) {
        const Value& value = chain.values.at(id);
        Shape shape = chain.lead;
        shape.push_back(value.width);
        if (value.heads > 0) shape = {chain.batch, value.heads, chain.tokens, value.size()};
        all.push_back(shape);
    }
    return all;
}

// Where the rows of a value are: for the whole run, or in the tile of one thread.
struct Rows::Place {
    float* data = nullptr;
    size_t offset = 0;
};

void Rows::run(const std::vector<Tensor>& inputs, const std::vector<int>& results,
               const std::vector<Tensor>& outputs, const Loop& loop) {
    const Chain chain = resolve(inputs);
    const int64_t tile = tile_rows(chain.batch, chain.tokens);
    std::vector<Place> places(chain.values.size());
    for (int id = 0; id < inputs_; ++id) places[id].data = inputs[id].data;
    for (size_t i = 0; i < results.size(); ++i) places[results[i]].data = outputs[i].data;
    const size_t held = place_results(chain, tile, places);

    std::unique_lock<std::mutex> lock(busy_, std::defer_lock);
    if (kernel_.by_runs == nullptr) lock.lock();
    std::vector<std::unique_ptr<Attention>> attentions(steps_.size());
    size_t work = 0;
    for (size_t n = 0; n < steps_.size(); ++n) {
        const std::vector<int>& from = steps_[n].operands;
        if (steps_[n].kind == Step::Kind::linear) {
            work = std::max(work, kept_[n].linear->work_bytes());
        } else if (steps_[n].kind == Step::Kind::attention) {
            const Value& q = chain.values[from[0]];
            const int64_t keys = inputs[from[1]].shape[2];
            work = std::max(work, Attention::work_bytes(kernel_, keys, q.size()));
            attentions[n] = std::make_unique<Attention>(
                kernel_, AttentionShape{chain.batch, q.heads, keys, q.size()}, inputs[from[1]].data,
                inputs[from[2]].data, from[3] < 0 ? nullptr : inputs[from[3]].data, rooms_[n],
                loop);
        }
    }

    const int64_t tiles = (chain.tokens + tile - 1) / tile;
    loop(chain.batch * tiles, [&](int64_t task) {
        Tile t{task / tiles, task % tiles * tile, 0, tile, scratch(held + work)};
        t.rows = std::min(tile, chain.tokens - t.first);
        for (size_t n = 0; n < steps_.size(); ++n) {
            execute(n, chain, places, attentions[n].get(), t, t.memory + held);
        }
    });
}

size_t Rows::place_results(const Chain& chain, int64_t tile, std::vector<Place>& places) const {
    std::vector<size_t> last(chain.values.size(), 0);  // step that reads a value last
    for (size_t n = 0; n < steps_.size(); ++n) {
        for (const int id : steps_[n].operands) {
            if (id >= 0) last[id] = n;
        }
    }
    struct Slot {
        size_t offset, bytes, until;
    };
    std::vector<Slot> slots;
    size_t end = 0;
    for (size_t n = 0; n < steps_.size(); ++n) {
        Place& place = places[inputs_ + n];
        if (place.data != nullptr) continue;
        const size_t bytes = aligned(tile * chain.values[inputs_ + n].width * sizeof(float));
        auto slot = std::find_if(slots.begin(), slots.end(),
                                 [&](const Slot& s) { return s.until < n && s.bytes == bytes; });
        if (slot == slots.end()) {
            slots.push_back({end, bytes, 0});
            slot = slots.end() - 1;
            end += bytes;
        }
        slot->until = std::max(last[inputs_ + n], n);
        place.offset = slot->offset;
    }
    return end;
}

void Rows::execute(size_t n, const Chain& chain, const std::vector<Place>& places,
                   const Attention* attention, const Tile& t, char* work) const {
    const Step& step = steps_[n];
    // First row of a value in this tile, and floats from one of its heads to the next.
    const auto rows = [&](int id) {
        const Value& v = chain.values[id];
        float* const local = reinterpret_cast<float*>(t.memory + places[id].offset);
        if (places[id].data == nullptr)
            return std::pair(local, v.heads > 0 ? t.height * v.size() : 0);
        if (v.heads == 0) {
            return std::pair(places[id].data + (t.group * chain.tokens + t.first) * v.width,
                             int64_t{0});
        }
        const int64_t before = t.group * v.heads * chain.tokens + t.first;
        return std::pair(places[id].data + before * v.size(), chain.tokens * v.size());
    };
    // The part of a given value [B, 1, width] that belongs to this row of the batch.
    const auto part = [&](size_t i, int64_t width) -> const float* {
        return step.operands[i] < 0 ? nullptr : places[step.operands[i]].data + t.group * width;
    };
    const Value &x = chain.values[step.operands[0]], &y = chain.values[inputs_ + n];
    const auto [from, from_stride] = rows(step.operands[0]);
    const auto [to, to_stride] = rows(inputs_ + static_cast<int>(n));
    switch (step.kind) {
        case Step::Kind::linear: {
            Finish finish{nullptr, part(4, y.width), nullptr, step.gelu};
            if (step.operands[3] >= 0) finish.residual = rows(step.operands[3]).first;
            (*kept_[n].linear)(from, t.rows, finish, to, work);
            break;
        }
        case Step::Kind::modulate:
            kernel_.modulate(from, t.rows, x.width, step.eps, part(1, x.width), part(2, x.width),
                             to);
            break;
        case Step::Kind::norm:
            kernel_.modulate(from, t.rows, x.width, step.eps, kept_[n].weight.data(),
                             kept_[n].bias.data(), to);
            break;
        case Step::Kind::heads: {
            const int64_t pairs = y.size() / 2;
            const float* turn = nullptr;
            if (step.operands[2] >= 0) {
                turn =
                    places[step.operands[2]].data + (2 * t.group * chain.tokens + t.first) * pairs;
            }
            for (int64_t r = 0; r < t.rows; ++r) {
                const float* const row = from + r * x.width;
                float* const out = to + r * y.size();
                if (step.operands[1] < 0) {
                    for (int64_t h = 0; h < y.heads; ++h) {
                        std::memcpy(out + h * to_stride, row + h * y.size(),
                                    y.size() * sizeof(float));
                    }
                    continue;
                }
                const float* const cosine = turn == nullptr ? nullptr : turn + r * pairs;
                const float* const sine = turn == nullptr ? nullptr : cosine + chain.tokens * pairs;
                kernel_.split_heads(row, y.heads, y.size(), step.eps, kept_[n].weight.data(),
                                    cosine, sine, step.factor, out, to_stride);
            }
            break;
        }
        case Step::Kind::attention:
            for (int64_t h = 0; h < x.heads; ++h) {
                (*attention)(t.group, h, from + h * from_stride, t.rows, to + h * x.size(), y.width,
                             work);
            }
            break;
    }
}

}  // namespace sdrt
