// Moving rows on the CPU: work is split over threads by rows, and neighbouring rows move in one copy.
#pragma once

#include "../ragged.h"

#include <algorithm>

namespace lavit::cpu {

// About 32 KiB a thread: below that, starting a thread costs more than copying.
inline int64_t grain(int64_t bytes_per_row) { return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, bytes_per_row)); }

inline void copy_rows(char* to, const char* from, int64_t rows, int64_t bytes) {
  switch (rows * bytes) {  // a constant size becomes one or two moves instead of a call
    case 1: std::memcpy(to, from, 1); break;
    case 2: std::memcpy(to, from, 2); break;
    case 4: std::memcpy(to, from, 4); break;
    case 8: std::memcpy(to, from, 8); break;
    case 16: std::memcpy(to, from, 16); break;
    default: std::memcpy(to, from, static_cast<size_t>(rows * bytes));
  }
}

inline void fill_rows(char* to, const Fill& fill, int64_t rows, int64_t bytes) {
  static constexpr unsigned char zeros[16] = {};
  if (std::memcmp(fill.bytes, zeros, 16) == 0) {  // as nearly always
    std::memset(to, 0, static_cast<size_t>(rows * bytes));
    return;
  }
  for (int64_t r = 0; r < rows; ++r, to += bytes) {
    int64_t k = 0;
    for (; k + 16 <= bytes; k += 16) std::memcpy(to + k, fill.bytes, 16);
    std::memcpy(to + k, fill.bytes, static_cast<size_t>(bytes - k));
  }
}

}  // namespace lavit::cpu
