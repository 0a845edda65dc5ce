// Moving rows on the GPU: one kernel for all four operations. A map tells, for every row number, which row is read
// and which is written; the kernel moves the bytes.
//
// A row of V vectors is owned by `lanes` neighbouring threads, the smallest power of two >= V up to a warp, so that
// short rows do not idle and long rows are read in whole 512-byte stretches. Rows longer than 256 vectors are cut
// along blockIdx.y. The limit is memory traffic: every byte is read once and written once.
#pragma once

#include "../ragged.h"
#include "launch.h"

#include <algorithm>
#include <cstdint>

namespace lavit::cuda {

constexpr int kThreads = 256;
constexpr int kVectorsPerLane = 8;

// What a map answers. from < 0: the row is filled; to < 0: nothing is written.
struct Move {
  int64_t from;
  int64_t to;
};

template <typename Vector, typename Map>
__global__ void __launch_bounds__(kThreads)
    move_rows(const Map map, const char* __restrict__ from, char* __restrict__ to, int64_t rows, int64_t vectors,
              int log_lanes, const __grid_constant__ Fill fill) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = thread >> log_lanes;
  if (row >= rows) return;
  const int lanes = 1 << log_lanes;
  const int lane = static_cast<int>(thread) & (lanes - 1);
  const Move move = map(row, lane == 0 && blockIdx.y == 0);
  if (move.to < 0) return;

  const bool copied = move.from >= 0;
  const auto* source = reinterpret_cast<const Vector*>(from) + (copied ? move.from * vectors : 0);
  auto* target = reinterpret_cast<Vector*>(to) + move.to * vectors;
  const auto* pattern = reinterpret_cast<const Vector*>(fill.bytes);
  constexpr int kPatterns = 16 / sizeof(Vector);
  const int64_t stretch = static_cast<int64_t>(lanes) * kVectorsPerLane;
  for (int64_t start = blockIdx.y * stretch; start < vectors; start += gridDim.y * stretch) {
    Vector held[kVectorsPerLane];  // all loads are under way before the first store waits for one
#pragma unroll
    for (int k = 0; k < kVectorsPerLane; ++k) {
      const int64_t v = start + k * lanes + lane;
      if (v < vectors) held[k] = copied ? source[v] : pattern[v % kPatterns];
    }
#pragma unroll
    for (int k = 0; k < kVectorsPerLane; ++k) {
      const int64_t v = start + k * lanes + lane;
      if (v < vectors) target[v] = held[k];
    }
  }
}

template <typename Vector, typename Map>
void launch_as(const Launch& launch, const Map& map, const Rows& rows, int64_t count, const Fill& fill) {
  const int64_t vectors = rows.bytes / static_cast<int64_t>(sizeof(Vector));
  int log_lanes = 0;
  while (log_lanes < 5 && (int64_t{1} << log_lanes) < vectors) ++log_lanes;
  const int64_t stretch = (int64_t{1} << log_lanes) * kVectorsPerLane;
  const int64_t blocks = ((count << log_lanes) + kThreads - 1) / kThreads;
  STD_TORCH_CHECK(blocks <= INT32_MAX, "rows: expected fewer than 2^31 blocks of rows, got ", count, " rows");
  const dim3 grid(static_cast<unsigned>(blocks),
                  static_cast<unsigned>(std::clamp<int64_t>((vectors + stretch - 1) / stretch, 1, 65535)));
  move_rows<Vector, Map>
      <<<grid, kThreads, 0, launch.stream>>>(map, rows.from, rows.to, count, vectors, log_lanes, fill);
  launch.done("move_rows");
}

// Move `count` rows as the map says, in the widest vectors that row size and addresses allow.
template <typename Map>
void move(const Tensor& like, const Map& map, const Rows& rows, int64_t count, const Fill& fill) {
  const Launch launch(like);
  const uint64_t together =
      reinterpret_cast<uint64_t>(rows.from) | reinterpret_cast<uint64_t>(rows.to) | static_cast<uint64_t>(rows.bytes);
  if (together % 16 == 0) {
    launch_as<uint4>(launch, map, rows, count, fill);
  } else if (together % 8 == 0) {
    launch_as<uint2>(launch, map, rows, count, fill);
  } else if (together % 4 == 0) {
    launch_as<uint32_t>(launch, map, rows, count, fill);
  } else if (together % 2 == 0) {
    launch_as<uint16_t>(launch, map, rows, count, fill);
  } else {
    launch_as<uint8_t>(launch, map, rows, count, fill);
  }
}

}  // namespace lavit::cuda
