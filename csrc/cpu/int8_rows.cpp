// What stands between products of int8: rows of activations to int8 with a scale each, and sums of int32 back.
//
// Beside a product of 1408 x 6144 weights, which takes 20 us a row on one core, a row costs what its bytes cost: 24 KB
// of sums in, 6 KB of int8 out. So a row is read once, and what follows the sums, up to the next product's int8, is done
// while the row lies in the first-level cache. The loops are plain, for the compiler to vectorise at each width.
#include "exp.h"

#include <algorithm>
#include <cmath>
#include <optional>

namespace lavit::cpu {
namespace {

#define LAVIT_LAMBDA __attribute__((always_inline))

constexpr float kSteps = 127.5f;  // a row's largest value lies between two steps, as torchao has it
constexpr float kLeast = 1.1920929e-7f;

LAVIT_INLINE int32_t bits_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

LAVIT_INLINE float float_of(int32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

LAVIT_INLINE float with_sign_of(float x, float sign) { return float_of(bits_of(x) ^ (bits_of(sign) & INT32_MIN)); }

// exp(-x) for x >= 0, to 2 units in the last place; about e^-87 beyond 87. As exp.h, of numbers: the loops are plain.
LAVIT_INLINE float exp_minus(float x) {
  const float y = float_of(std::min(bits_of(x), bits_of(87.0f)));  // as integers, which the compiler vectorises
  const float whole = static_cast<float>(static_cast<int32_t>(y * 1.44269504f + 0.5f));
  const float r = (whole * 0.693359375f - y) + whole * -2.12194440e-4f;  // -y = r - whole * log(2)
  float p;
  exp_near_zero<float>(p, r);
  return p * float_of((127 - static_cast<int32_t>(whole)) << 23);
}

// x Phi(x). The error function by Abramowitz and Stegun 7.1.26, to 1.5e-7.
LAVIT_INLINE float gelu(float x) {
  const float z = std::fabs(x) * 0.70710678f;
  const float t = 1.0f / (1.0f + 0.3275911f * z);
  const float p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
  const float tail = 0.5f * p * exp_minus(z * z);  // of the normal distribution, beyond |x|
  return x * (0.5f + with_sign_of(0.5f - tail, x));
}

// The largest |x| of a row; NaN where there is one, whose bits are above infinity's. Returns the row's scale.
LAVIT_INLINE float to_int8(const float* x, int8_t* q, int64_t n) {
  int32_t most = 0;
  for (int64_t j = 0; j < n; ++j) most = std::max(most, bits_of(x[j]) & 0x7fffffff);
  const float largest = float_of(most), scale = largest / kSteps < kLeast ? kLeast : largest / kSteps;
  const float steps = 1.0f / scale;
  const int32_t finite = most < 0x7f800000 ? -1 : 0;  // another row is told by its scale
  for (int64_t j = 0; j < n; ++j) {
    const float y = float_of(bits_of(x[j] * steps) & finite);  // at most 127.5
    q[j] = static_cast<int8_t>(std::min(127, static_cast<int32_t>(y + with_sign_of(0.5f, y))));
  }
  return scale;
}

template <class T>
struct Quantize {
  const T* x;
  int8_t* q;
  float* scale;
  int64_t n;
  LAVIT_INLINE void operator()(int64_t i, float* buffer) const {
    for (int64_t j = 0; j < n; ++j) buffer[j] = read(x[i * n + j]);
    scale[i] = to_int8(buffer, q + i * n, n);
  }
};

struct Sums {
  const int32_t* sums;
  const float *rows, *columns, *bias;
  // Row i of n, by `to(j, value)`.
  template <class To>
  LAVIT_INLINE void each(int64_t i, int64_t n, const To& to) const {
    const int32_t* sum = sums + i * n;
    const float row = rows[i];
    for (int64_t j = 0; j < n; ++j) to(j, static_cast<float>(sum[j]) * (row * columns[j]) + bias[j]);
  }
};

template <class T>
struct Scale {
  Sums s;
  const T* residual;
  T* out;
  int64_t n;
  LAVIT_INLINE void operator()(int64_t i, float*) const {
    T* to = out + i * n;
    if (residual == nullptr) {
      s.each(i, n, [to](int64_t j, float y) LAVIT_LAMBDA { write(to[j], y); });
    } else {
      const T* from = residual + i * n;
      s.each(i, n, [to, from](int64_t j, float y) LAVIT_LAMBDA { write(to[j], y + read(from[j])); });
    }
  }
};

struct Gelu {
  Sums s;
  int8_t* q;
  float* scale;
  int64_t n;
  LAVIT_INLINE void operator()(int64_t i, float* __restrict buffer) const {
    s.each(i, n, [buffer](int64_t j, float y) LAVIT_LAMBDA { buffer[j] = y; });
    for (int64_t j = 0; j < n; ++j) buffer[j] = gelu(buffer[j]);
    scale[i] = to_int8(buffer, q + i * n, n);
  }
};

// The rows of a body that does one, with a buffer of its numbers.
template <class Row>
struct Rows {
  const Row& row;

  template <int>
  LAVIT_INLINE void run(int64_t begin, int64_t end) const {
    std::vector<float> buffer(static_cast<size_t>(row.n));
    for (int64_t i = begin; i < end; ++i) row(i, buffer.data());
  }
};

template <class Row>
void run(const Row& row, int64_t count) {
  in_lanes(Rows<Row>{row}, count, 8);
}

void check(const char* name, const Tensor& t, ScalarType type, const char* wanted, int64_t dim, int64_t elements) {
  STD_TORCH_CHECK(t.scalar_type() == type, name, ": expected ", wanted);
  STD_TORCH_CHECK(t.dim() == dim && t.is_contiguous(), name, ": expected a contiguous tensor of ", dim, " dimensions");
  STD_TORCH_CHECK(t.numel() == elements, name, ": expected ", elements, " elements, got ", t.numel());
}

Sums sums_of(const Tensor& products, const Tensor& rows, const Tensor& columns, const Tensor& bias) {
  check("products", products, ScalarType::Int, "int32", 2, products.numel());
  check("rows", rows, ScalarType::Float, "float32", 1, products.size(0));
  check("columns", columns, ScalarType::Float, "float32", 1, products.size(1));
  check("bias", bias, ScalarType::Float, "float32", 1, products.size(1));
  const auto floats = [](const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); };
  return {static_cast<const int32_t*>(products.const_data_ptr()), floats(rows), floats(columns), floats(bias)};
}

template <class Go>
void by_type(const Tensor& x, const Go& go) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16,
                  "expected float32 or bfloat16");
  x.scalar_type() == ScalarType::Float ? go(float{}) : go(BFloat16{});
}

}  // namespace

// x (M, K) float32 or bfloat16 -> (M, K) int8, (M,) float32 with x ~ int8 * scale.
std::tuple<Tensor, Tensor> quantize_rows(const Tensor& x) {
  check_rows("x", x, 2);
  STD_TORCH_CHECK(x.dim() == 2, "x: expected 2 dimensions, got ", x.dim());
  const int64_t m = x.size(0), k = x.size(1);
  Tensor q = torch::stable::new_empty(x, {m, k}, ScalarType::Char);
  Tensor scale = torch::stable::new_empty(x, {m}, ScalarType::Float);
  by_type(x, [&](auto type) {
    using T = decltype(type);
    run(Quantize<T>{static_cast<const T*>(x.const_data_ptr()), data<int8_t>(q), data<float>(scale), k}, m);
  });
  return {q, scale};
}

// products (M, N) int32 * rows (M,) * columns (N,) + bias (N,) + residual (M, N) -> (M, N) of the type of `like`.
Tensor scale_products(const Tensor& products, const Tensor& rows, const Tensor& columns, const Tensor& bias,
                      const Tensor& like, bool residual) {
  const Sums s = sums_of(products, rows, columns, bias);
  const int64_t m = products.size(0), n = products.size(1);
  Tensor out = torch::stable::new_empty(products, {m, n}, like.scalar_type());
  by_type(like, [&](auto type) {
    using T = decltype(type);
    if (residual) check("residual", like, like.scalar_type(), "", 2, m * n);
    run(Scale<T>{s, residual ? static_cast<const T*>(like.const_data_ptr()) : nullptr, data<T>(out), n}, m);
  });
  return out;
}

// The same without a residual, GELU of it, and that to int8.
std::tuple<Tensor, Tensor> gelu_products(const Tensor& products, const Tensor& rows, const Tensor& columns,
                                         const Tensor& bias) {
  const Sums s = sums_of(products, rows, columns, bias);
  const int64_t m = products.size(0), n = products.size(1);
  Tensor q = torch::stable::new_empty(products, {m, n}, ScalarType::Char);
  Tensor scale = torch::stable::new_empty(products, {m}, ScalarType::Float);
  run(Gelu{s, data<int8_t>(q), data<float>(scale), n}, m);
  return {q, scale};
}

}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) {
  m.impl("quantize_rows", TORCH_BOX(&lavit::cpu::quantize_rows));
  m.impl("scale_products", TORCH_BOX(&lavit::cpu::scale_products));
  m.impl("gelu_products", TORCH_BOX(&lavit::cpu::gelu_products));
}
