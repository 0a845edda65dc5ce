// bin_pack: lengths -> bins of a token budget, by best-fit decreasing over windows or by next-fit in the order given.
//
// Each sample costs one search among the rooms that open bins have left and one move between two of them: for a budget
// of 4096 a room is a bit of 64 words, so a window is linear in its samples. Nothing is computed in floating point and
// every tie has a rule, so the bins are those of lavit/kernels/bin_pack/reference.py, one by one.
#include "../common.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <set>
#include <utility>

namespace lavit::cpu {
namespace {

constexpr int64_t kMostRooms = 1 << 16;  // beyond that a bit and a heap for every room cost more than a tree

// Open bins by the room left in them: a heap of bins for every room, and a bit that tells whether it holds one.
class Rooms {
 public:
  explicit Rooms(int64_t budget) : heaps_(budget + 1), held_(budget / 64 + 1) {}

  // Takes out the bin with the least room >= length, the lowest of equal ones, and tells its room; -1: there is none.
  int64_t take(int64_t length, int64_t* room) {
    size_t w = static_cast<size_t>(length / 64);
    uint64_t word = held_[w] & (~uint64_t{0} << (length % 64));
    while (word == 0) {
      if (++w == held_.size()) return -1;
      word = held_[w];
    }
    *room = static_cast<int64_t>(w) * 64 + __builtin_ctzll(word);
    std::vector<int64_t>& heap = heaps_[*room];
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const int64_t bin = heap.back();
    heap.pop_back();
    if (heap.empty()) held_[w] &= ~(uint64_t{1} << (*room % 64));
    return bin;
  }

  void put(int64_t bin, int64_t room) {
    std::vector<int64_t>& heap = heaps_[room];
    heap.push_back(bin);
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
    held_[room / 64] |= uint64_t{1} << (room % 64);
  }

 private:
  std::vector<std::vector<int64_t>> heaps_;
  std::vector<uint64_t> held_;
};

// The same as a tree, for budgets that dwarf the samples.
class RoomTree {
 public:
  explicit RoomTree(int64_t) {}

  int64_t take(int64_t length, int64_t* room) {
    const auto found = bins_.lower_bound({length, 0});
    if (found == bins_.end()) return -1;
    *room = found->first;
    const int64_t bin = found->second;
    bins_.erase(found);
    return bin;
  }

  void put(int64_t bin, int64_t room) { bins_.insert({room, bin}); }

 private:
  std::set<std::pair<int64_t, int64_t>> bins_;  // (room, bin)
};

bool fits(int64_t length, int64_t budget) { return length >= 0 && length <= budget; }

// The samples that fit, the longest first, equally long ones in the order given.
std::vector<int64_t> decreasing(const int64_t* length, int64_t n, int64_t budget, bool few_rooms) {
  std::vector<int64_t> samples;
  if (!few_rooms) {
    for (int64_t i = 0; i < n; ++i) {
      if (fits(length[i], budget)) samples.push_back(i);
    }
    std::stable_sort(samples.begin(), samples.end(), [&](int64_t a, int64_t b) { return length[a] > length[b]; });
    return samples;
  }
  std::vector<int64_t> place(budget + 2);  // place[r + 1] counts, then place[r] is where samples with room r go
  for (int64_t i = 0; i < n; ++i) {
    if (fits(length[i], budget)) ++place[budget - length[i] + 1];
  }
  std::partial_sum(place.begin(), place.end(), place.begin());
  samples.resize(place.back());
  for (int64_t i = 0; i < n; ++i) {
    if (fits(length[i], budget)) samples[place[budget - length[i]]++] = i;
  }
  return samples;
}

// Both methods write each sample's bin to bin_of, -1 if it fits in none, and return the number of bins.
template <class Open>
int64_t best_fit(const int64_t* length, const std::vector<int64_t>& samples, int64_t budget, int64_t* bin_of) {
  Open open(budget);
  int64_t bins = 0;
  for (const int64_t i : samples) {
    int64_t room = budget;
    int64_t bin = open.take(length[i], &room);
    if (bin < 0) bin = bins++;
    open.put(bin, room - length[i]);
    bin_of[i] = bin;
  }
  return bins;
}

int64_t best_fit_decreasing(const int64_t* length, int64_t n, int64_t budget, int64_t* bin_of) {
  std::fill(bin_of, bin_of + n, -1);
  const bool few_rooms = budget <= kMostRooms && budget / 16 <= n;
  const std::vector<int64_t> samples = decreasing(length, n, budget, few_rooms);
  return few_rooms ? best_fit<Rooms>(length, samples, budget, bin_of)
                   : best_fit<RoomTree>(length, samples, budget, bin_of);
}

int64_t next_fit(const int64_t* length, int64_t n, int64_t budget, int64_t* bin_of) {
  int64_t bins = 0, room = -1;
  for (int64_t i = 0; i < n; ++i) {
    bin_of[i] = -1;
    if (!fits(length[i], budget)) continue;
    if (length[i] > room) {
      room = budget;
      ++bins;
    }
    room -= length[i];
    bin_of[i] = bins - 1;
  }
  return bins;
}

// Lays samples first .. first + n - 1 out bin after bin from `order` on, bins by their first sample, samples as given;
// appends the bins' ends to cu and the samples without a bin to skipped.
void lay_out(const int64_t* bin_of, int64_t first, int64_t n, int64_t bins, int64_t* order, std::vector<int64_t>& cu,
             std::vector<int64_t>& skipped) {
  std::vector<int64_t> rank(bins, -1), size;
  for (int64_t i = 0; i < n; ++i) {
    if (bin_of[i] < 0) {
      skipped.push_back(first + i);
      continue;
    }
    int64_t& r = rank[bin_of[i]];
    if (r < 0) {
      r = static_cast<int64_t>(size.size());
      size.push_back(0);
    }
    ++size[r];
  }
  std::vector<int64_t> next;  // by rank, where the bin's next sample goes
  for (const int64_t s : size) {
    next.push_back(cu.back());
    cu.push_back(cu.back() + s);
  }
  for (int64_t i = 0; i < n; ++i) {
    if (bin_of[i] >= 0) order[next[rank[bin_of[i]]]++] = first + i;
  }
}

Tensor tensor_of(const std::vector<int64_t>& numbers, const Tensor& like) {
  Tensor t = torch::stable::new_empty(like, {static_cast<int64_t>(numbers.size())}, ScalarType::Long);
  if (!numbers.empty()) std::memcpy(t.mutable_data_ptr(), numbers.data(), numbers.size() * sizeof(int64_t));
  return t;
}

}  // namespace

// lengths (n,) int64 -> order (m,), cu (bins + 1,), skipped (n - m,), all int64; what fits in no bin is skipped.
std::tuple<Tensor, Tensor, Tensor> bin_pack(const Tensor& lengths, int64_t budget, int64_t window, bool in_order) {
  check_rows("lengths", lengths, 1);
  STD_TORCH_CHECK(lengths.dim() == 1 && lengths.scalar_type() == ScalarType::Long, "lengths: expected (n,) int64");
  STD_TORCH_CHECK(budget >= 1, "budget: expected >= 1, got ", budget);
  STD_TORCH_CHECK(window >= 1, "window: expected >= 1, got ", window);
  const int64_t n = lengths.size(0);
  const auto* length = static_cast<const int64_t*>(lengths.const_data_ptr());
  const int64_t m = std::count_if(length, length + n, [&](int64_t l) { return fits(l, budget); });
  Tensor order = torch::stable::new_empty(lengths, {m});
  auto* out = static_cast<int64_t*>(order.mutable_data_ptr());

  std::vector<int64_t> cu{0}, skipped;
  const int64_t most = in_order ? n : std::min(window, n);
  std::vector<int64_t> bin_of(most);
  for (int64_t first = 0; first < n;) {
    const int64_t samples = std::min(most, n - first);
    const auto method = in_order ? next_fit : best_fit_decreasing;
    const int64_t bins = method(length + first, samples, budget, bin_of.data());
    lay_out(bin_of.data(), first, samples, bins, out, cu, skipped);
    first += samples;
  }
  return {order, tensor_of(cu, lengths), tensor_of(skipped, lengths)};
}

}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) { m.impl("bin_pack", TORCH_BOX(&lavit::cpu::bin_pack)); }
