// assemble_sequences: what its CPU and its CUDA kernel share: the arguments, and what one segment becomes.
//
// A segment is a piece of text or an image between [IMG] and [/IMG]. Whatever the values on the device are, a piece
// lies within the tokens that there are, and a piece that is not there is empty.
#pragma once

#include "common.h"

#include <optional>

namespace lavit::sequences {

enum Kind : int { kText = 0, kCodes = 1, kFeatures = 2, kNothing = 3 };  // kNothing: no kind, no rows
enum Flag : int { kContent = 1, kBegin = 2, kEnd = 4, kAll = 7 };        // what of a segment carries loss

// int32 or int64 numbers, read as they come: a conversion would be a launch of its own.
struct Numbers {
  const void* data = nullptr;
  bool wide = false;

  LAVIT_BOTH int64_t operator[](int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

// Tokens [begin, begin + length): offsets are int32, so both fit.
struct Span {
  int32_t begin;
  int32_t length;
};

struct Pieces {
  Numbers values;
  int64_t tokens;
  const int32_t* cu;
  int64_t count;

  LAVIT_BOTH Span operator[](int64_t k) const {
    if (k >= count) return {0, 0};
    const int64_t begin = clamped(cu[k], 0, tokens);
    return {static_cast<int32_t>(begin), static_cast<int32_t>(clamped(cu[k + 1], begin, tokens) - begin)};
  }
};

struct Arguments {
  Pieces text;
  Pieces images;
  Numbers kinds;
  Numbers loss;  // no data: by kind
  const int32_t* cu_segments;
  int64_t segments;
  int64_t batch;
  int64_t kind_loss;  // three bits a kind
  int64_t begin_id, end_id, first_code_id, pad_id, ignore_index;
  int64_t total;
  // The results.
  int64_t* input_ids;
  int64_t* labels;
  int64_t* position_ids;
  int32_t* cu_seqlens;
  int64_t* feature_rows;

  // Segments in use; rows of `kinds` beyond them are spare.
  LAVIT_BOTH int64_t used() const { return clamped(cu_segments[batch], 0, segments); }

  LAVIT_BOTH int kind_of(int64_t s) const {
    const int64_t kind = kinds[s];
    return kind < 0 || kind > kFeatures ? kNothing : static_cast<int>(kind);
  }

  LAVIT_BOTH int loss_of(int64_t s, int kind) const {
    return static_cast<int>((loss.data != nullptr ? loss[s] : kind_loss >> (3 * kind)) & kAll);
  }

  // Codes follow the text's ids in the vocabulary. Unsigned, since a sum of any two numbers must be defined.
  LAVIT_BOTH int64_t code_id(int64_t code) const {
    return static_cast<int64_t>(static_cast<uint64_t>(first_code_id) + static_cast<uint64_t>(code));
  }
};

LAVIT_BOTH inline bool is_image(int kind) { return kind == kCodes || kind == kFeatures; }

LAVIT_BOTH inline int64_t rows_of(int kind, int32_t length) {
  return kind == kNothing ? 0 : static_cast<int64_t>(length) + (kind == kText ? 0 : 2);
}

inline Numbers numbers(const char* name, const Tensor& t, const Tensor& like) {
  const bool wide = t.scalar_type() == ScalarType::Long;
  STD_TORCH_CHECK(wide || t.scalar_type() == ScalarType::Int, name, ": expected int64 or int32");
  STD_TORCH_CHECK(t.dim() == 1 && t.is_contiguous(), name, ": expected a contiguous vector");
  STD_TORCH_CHECK(t.is_cuda() == like.is_cuda() && t.get_device_index() == like.get_device_index(), name,
                  ": expected the device of the text");
  return {t.const_data_ptr(), wide};
}

inline const int32_t* offsets(const char* name, const Tensor& cu, const Tensor& like) {
  check_indices(name, cu, 1, like);
  STD_TORCH_CHECK(cu.size(0) >= 1, name, ": expected at least one offset");
  return static_cast<const int32_t*>(cu.const_data_ptr());
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// Checks the arguments, allocates the results, and lets `run(text, arguments)` fill them.
template <auto run>
Results assemble(const Tensor& text, const Tensor& cu_text, const Tensor& images, const Tensor& cu_images,
                 const Tensor& segments, const Tensor& cu_segments, const std::optional<Tensor>& loss,
                 int64_t kind_loss, int64_t begin_id, int64_t end_id, int64_t first_code_id, int64_t pad_id,
                 int64_t ignore_index, int64_t total) {
  STD_TORCH_CHECK(total >= 0 && total <= INT32_MAX, "total: expected 0 to 2^31 - 1 rows, got ", total);
  const Pieces texts{numbers("text", text, text), text.size(0), offsets("cu_text", cu_text, text), cu_text.size(0) - 1};
  const Pieces codes{numbers("images", images, text), images.size(0), offsets("cu_images", cu_images, text),
                     cu_images.size(0) - 1};
  const Numbers kinds = numbers("segments", segments, text);
  Numbers flags;
  if (loss.has_value()) {
    flags = numbers("loss", *loss, text);
    STD_TORCH_CHECK(loss->size(0) == segments.size(0), "loss: expected one number a segment");
    if (segments.size(0) == 0) flags = {};  // an empty tensor may have no address; there is nothing to read
  }
  const int32_t* samples = offsets("cu_segments", cu_segments, text);
  const int64_t batch = cu_segments.size(0) - 1;
  const auto longs = [&](int64_t n) { return torch::stable::new_empty(text, {n}, ScalarType::Long); };
  Results results{longs(total), longs(total), longs(total),
                  torch::stable::new_empty(text, {batch + 1}, ScalarType::Int), longs(images.size(0))};
  const auto& [ids, labels, positions, cu_seqlens, feature_rows] = results;
  run(text, Arguments{texts, codes, kinds, flags, samples, segments.size(0), batch, kind_loss, begin_id, end_id,
                      first_code_id, pad_id, ignore_index, total, data<int64_t>(ids), data<int64_t>(labels),
                      data<int64_t>(positions), data<int32_t>(cu_seqlens), data<int64_t>(feature_rows)});
  return results;
}

}  // namespace lavit::sequences
