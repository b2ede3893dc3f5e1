// Splits an index range over threads that live for one call. The work of an index never depends on
// the split, so results do not depend on the number of threads. Nothing outlives the call: no pool,
// no globals.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace sdrt {

inline int resolve_threads(int threads) {
    return threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
}

// body(begin, end) over [0, count), at least `grain` indices to a thread: a thread costs some 20 us
// to start, so the grain should be worth several times that.
template <typename Body>
void parallel_for(int64_t count, int64_t grain, int threads, const Body& body) {
    const int64_t most = count / std::max<int64_t>(grain, 1);
    const int64_t workers = std::clamp<int64_t>(most, 1, resolve_threads(threads));
    std::vector<std::jthread> others;
    others.reserve(workers - 1);
    for (int64_t w = 1; w < workers; ++w) {
        others.emplace_back([&, w] { body(count * w / workers, count * (w + 1) / workers); });
    }
    body(int64_t{0}, count / workers);
}

}  // namespace sdrt
