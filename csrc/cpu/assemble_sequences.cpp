// assemble_sequences on the CPU: one serial pass places the segments, then threads share the rows, run by run, and the
// image tokens. Traffic for 100 000 rows: 2.4 MB written, a third of that read.
#include "../assemble_sequences.h"

#include <algorithm>

namespace lavit::cpu {
namespace {

using namespace sequences;

struct Segment {
  Span span;
  int kind;
  int loss;
  int64_t sample_start;  // the row at which its sample begins
};

struct Layout {
  std::vector<Segment> segments;
  std::vector<int64_t> starts;      // the row of each segment, and the end of the last
  std::vector<int64_t> image_rows;  // the row of an image's first token if it is used as features, else -1
};

Layout place(const Arguments& a) {
  const int64_t used = a.used();
  Layout layout;
  layout.segments.reserve(static_cast<size_t>(used));
  layout.starts.reserve(static_cast<size_t>(used) + 1);
  layout.starts.push_back(0);
  layout.image_rows.assign(static_cast<size_t>(a.images.count), -1);
  int64_t sample = 0, text = 0, image = 0;
  for (int64_t s = 0; s < used; ++s) {
    while (sample + 1 < a.batch && a.cu_segments[sample + 1] <= s) ++sample;
    const int kind = a.kind_of(s);
    const Span span = kind == kText ? a.text[text++] : is_image(kind) ? a.images[image++] : Span{0, 0};
    const int64_t start = layout.starts.back();
    if (kind == kFeatures && image <= a.images.count) layout.image_rows[static_cast<size_t>(image - 1)] = start + 1;
    const int64_t first = clamped(a.cu_segments[sample], 0, s);  // the sample's first segment
    layout.segments.push_back({span, kind, a.loss_of(s, kind), layout.starts[static_cast<size_t>(first)]});
    layout.starts.push_back(start + rows_of(kind, span.length));
  }
  return layout;
}

// Rows [row, stop) of one segment that starts at `start`.
class Writer {
 public:
  Writer(const Arguments& a, const Segment& segment) : a_(a), segment_(segment) {}

  void operator()(int64_t start, int64_t row, int64_t stop) {
    const int64_t first = row;
    if (segment_.kind == kText) {
      content(row, stop, segment_.span.begin - start, a_.text.values, 0);
    } else {
      const int64_t end = start + 1 + segment_.span.length;  // the row of [/IMG]
      if (row == start && row < stop) marker(row++, a_.begin_id, kBegin);
      const int64_t last = std::min(stop, end);
      if (row < last) {
        content(row, last, segment_.span.begin - (start + 1), a_.images.values, a_.first_code_id);
        row = last;
      }
      if (row < stop) marker(row, a_.end_id, kEnd);
    }
    if (first == segment_.sample_start && first < stop) a_.labels[first] = a_.ignore_index;
  }

 private:
  void marker(int64_t row, int64_t id, Flag flag) const {
    a_.input_ids[row] = id;
    a_.labels[row] = (segment_.loss & flag) != 0 ? id : a_.ignore_index;
    a_.position_ids[row] = row - segment_.sample_start;
  }

  // Row r takes token r + shift.
  void content(int64_t row, int64_t stop, int64_t shift, const Numbers& values, int64_t offset) const {
    if (values.wide) {
      ids(row, stop, static_cast<const int64_t*>(values.data) + (row + shift), offset);
    } else {
      ids(row, stop, static_cast<const int32_t*>(values.data) + (row + shift), offset);
    }
    if ((segment_.loss & kContent) != 0) {
      std::copy(a_.input_ids + row, a_.input_ids + stop, a_.labels + row);
    } else {
      std::fill(a_.labels + row, a_.labels + stop, a_.ignore_index);
    }
    for (int64_t r = row; r < stop; ++r) a_.position_ids[r] = r - segment_.sample_start;
  }

  template <typename Number>
  void ids(int64_t row, int64_t stop, const Number* from, int64_t offset) const {
    for (int64_t r = row; r < stop; ++r) {
      const auto id = static_cast<uint64_t>(static_cast<int64_t>(from[r - row])) + static_cast<uint64_t>(offset);
      a_.input_ids[r] = static_cast<int64_t>(id);
    }
  }

  const Arguments& a_;
  const Segment& segment_;
};

void run(const Tensor&, const Arguments& a) {
  constexpr int64_t kGrain = 4096;  // rows or tokens a thread
  const Layout layout = place(a);
  const auto& starts = layout.starts;
  const auto used = static_cast<int64_t>(layout.segments.size());
  for (int64_t b = 0; b <= a.batch; ++b) {
    const int64_t start = starts[static_cast<size_t>(clamped(a.cu_segments[b], 0, used))];
    a.cu_seqlens[b] = static_cast<int32_t>(std::min(start, a.total));
  }
  torch::stable::parallel_for(0, a.total, kGrain, [&](int64_t begin, int64_t end) {
    // The last segment that starts at or before the row; those of no rows before it start there too.
    auto s = static_cast<size_t>(std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin()) - 1;
    for (int64_t row = begin; row < end;) {
      while (s < layout.segments.size() && starts[s + 1] <= row) ++s;
      if (s == layout.segments.size()) {
        std::fill(a.input_ids + row, a.input_ids + end, a.pad_id);
        std::fill(a.labels + row, a.labels + end, a.ignore_index);
        std::fill(a.position_ids + row, a.position_ids + end, 0);
        return;
      }
      const int64_t stop = std::min(end, starts[s + 1]);
      Writer(a, layout.segments[s])(starts[s], row, stop);
      row = stop;
    }
  });
  const int32_t* ends = a.images.cu + 1;
  torch::stable::parallel_for(0, a.images.tokens, kGrain, [&](int64_t begin, int64_t end) {
    int64_t image = std::upper_bound(ends, ends + a.images.count, begin) - ends;
    for (int64_t t = begin; t < end; ++t) {
      while (image < a.images.count && ends[image] <= t) ++image;
      int64_t row = -1;
      if (image < a.images.count && layout.image_rows[static_cast<size_t>(image)] >= 0) {
        const int64_t rank = t - a.images[image].begin;
        if (rank >= 0) row = layout.image_rows[static_cast<size_t>(image)] + rank;
      }
      a.feature_rows[t] = row < a.total ? row : -1;
    }
  });
}

}  // namespace
}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) {
  m.impl("assemble_sequences", TORCH_BOX(&lavit::sequences::assemble<lavit::cpu::run>));
}
