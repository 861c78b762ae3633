// The head on a CPU: products, row statistics and gradients, panel by panel, so that no tile of logits leaves
// the cache. cpu_build.py compiles this, cpu_head.py calls it; the formulas are those of rows.py.
//
// Products are summed in float32 also for bfloat16 inputs. Every row's numbers are made in the same order
// whatever the number of threads and of other rows.

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <new>
#include <vector>

using at::BFloat16;

extern "C" {
// Kept the same as cpu_head.Head. Strides are in elements; null pointers are absent parts.
struct Head {
  const void* hidden;     // (rows, width)
  const void* weight;     // (columns, width)
  const float* bias;      // (columns,)
  const float* cooling;   // (rows,) 1/T
  const float* centre;    // (width,) taken from every row of weight; float32 only
  const int64_t* targets; // (rows,)
  float* peak;            // (rows,) the statistics
  float* total;
  float* weighted;
  float* target;
  const float* upstream;         // (rows,) d loss / d log-prob
  const float* upstream_entropy; // (rows,) d loss / d entropy
  void* out;                     // (rows, columns) gradients of the products
  double* lost;                  // (rows,) takes what is missing from the sum of the gradients: see rows.py
  const float* products;         // (rows, columns) read in place of hidden and weight, where these are null
  int64_t rows, columns, width;
  int64_t hidden_stride, weight_stride, out_stride, products_stride;
  int64_t first; // place of the first column in the vocabulary
  int64_t threads;
  float scale, softcap; // softcap 0: none
  int32_t narrow;       // hidden, weight and out are bfloat16, not float32
  int32_t entropy;      // statistics: whether to sum `weighted`
};

// out += a·b, in float32. Kept the same as cpu_head.Product.
struct Product {
  const void* a; // (rows, depth), or (depth, rows) if transposed
  const void* b; // (depth, columns)
  const float* centre; // (columns,) taken from every row of b; null: nothing; float32 only
  float* out;    // (rows, columns)
  int64_t rows, columns, depth;
  int64_t a_stride, b_stride, out_stride;
  int64_t threads;
  int32_t a_transposed;
  int32_t narrow; // a and b are bfloat16, not float32
};
}

namespace {

constexpr int64_t PANEL = 128;          // columns of a product
constexpr int64_t GROUP = 8 * PANEL;    // columns that each row goes over at once
constexpr int64_t BLOCK = 64;           // rows of a product at most
constexpr int64_t DEPTH = 1024;         // terms of a sum whose left factors are packed at once
constexpr int64_t PACKED = 1 << 20;     // words of right factors that are packed before the threads meet

// Memory on a line of the cache, which vectors of a heap's choice would cross.
template <typename T>
struct Room {
  T* data;
  explicit Room(int64_t count) : data(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64)))) {}
  ~Room() { ::operator delete(data, std::align_val_t(64)); }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
};

struct Exponential {
  float power, rest; // e^x = power + power·rest
};

// x in [-87.3, 0] or NaN; below, the smallest normal numbers stand for 0.
inline Exponential exponential(float x) {
  x = x < -87.3f ? -87.3f : x;
  const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; // to the nearest integer
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const float tail = 0.5f + r * (1.6666667e-1f + r * (4.1666667e-2f + r * (8.3333333e-3f + r * (1.3888889e-3f + r * 1.9841270e-4f))));
  const uint32_t bits = (static_cast<uint32_t>(static_cast<int32_t>(n)) + 127u) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return {power, r + r * r * tail};
}

inline float raised(float x) {
  const Exponential e = exponential(x);
  return e.power + e.power * e.rest;
}

struct Tangent {
  float value, slope; // tanh x, 1 - tanh² x
};

inline Tangent tangent(float x) {
  const Exponential e = exponential(-2.0f * std::fabs(x));
  const float all = e.power + e.power * e.rest, less = (e.power - 1.0f) + e.power * e.rest; // e^(-2|x|), and less 1
  const float more = 2.0f + less;
  return {std::copysign(-less / more, x), 4.0f * all / (more * more)};
}

// Returns the value as it was stored.
inline float store(float* out, float value) { return *out = value; }

inline float store(BFloat16* out, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out->x = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
  const uint32_t kept_bits = rounded << 16;
  float kept;
  std::memcpy(&kept, &kept_bits, sizeof kept);
  return kept;
}

// Logits over the temperature of columns [column, column + count) of a row, and the slopes of the cap if there is one.
void bend(const Head& head, int64_t row, int64_t column, int64_t count, const float* products, float* z, float* slopes) {
  const float cooling = head.cooling[row];
  const float* bias = head.bias ? head.bias + column : nullptr;
  const float inner = head.softcap > 0 ? head.scale / head.softcap : head.scale * cooling;
  const float outer = head.softcap * cooling;
  if (bias) {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) z[j] = (products[j] + bias[j]) * inner;
  } else {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) z[j] = products[j] * inner;
  }
  if (head.softcap > 0) {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      const Tangent t = tangent(z[j]);
      z[j] = outer * t.value;
      slopes[j] = t.slope;
    }
  }
}

struct Sums {
  double total = 0, weighted = 0;
};

void take(const Head& head, Sums* sums, int64_t row, int64_t column, int64_t count, const float* products) {
  alignas(64) float z[GROUP], slopes[GROUP];
  bend(head, row, column, count, products, z, slopes);
  const int64_t place = head.targets[row] - head.first - column;
  if (place >= 0 && place < count) head.target[row] = z[place];
  float peak = head.peak[row];
#pragma omp simd reduction(max : peak)
  for (int64_t j = 0; j < count; ++j) peak = z[j] > peak ? z[j] : peak;
  const double shift = static_cast<double>(head.peak[row]) - peak;
  float total = 0, weighted = 0;
  if (head.entropy) {
#pragma omp simd reduction(+ : total, weighted)
    for (int64_t j = 0; j < count; ++j) {
      const float relative = z[j] - peak, e = raised(relative);
      total += e;
      weighted += relative * e;
    }
  } else {
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < count; ++j) total += raised(z[j] - peak);
  }
  Sums& s = sums[row];
  if (shift != 0) {
    const double shrink = std::exp(shift);
    s.weighted = (s.weighted + (s.total > 0 ? shift * s.total : 0.0)) * shrink;
    s.total *= shrink;
    head.peak[row] = peak;
  }
  s.total += total;
  s.weighted += weighted;
}

// A template of the cap too: a choice inside the loop would leave it without vectors.
template <typename T, bool capped>
void differentiate(const Head& head, int64_t row, int64_t column, int64_t count, const float* products) {
  alignas(64) float z[GROUP], slopes[GROUP];
  bend(head, row, column, count, products, z, slopes);
  const float steepness = head.scale * head.cooling[row], peak = head.peak[row];
  const float share = -steepness / head.total[row];
  const float g = head.upstream ? head.upstream[row] : 0.0f;
  const float h = head.upstream_entropy ? head.upstream_entropy[row] : 0.0f;
  const float offset = share * (g - h * (head.weighted[row] / head.total[row])), rise = share * h;
  T* out = static_cast<T*>(head.out) + row * head.out_stride + column;
  const int32_t place = static_cast<int32_t>(std::clamp<int64_t>(head.targets[row] - head.first - column, -1, count));
  constexpr float expected = capped ? 1.0f : 0.0f; // without a cap a row's gradients sum to nothing
  float lost = 0;
#pragma omp simd reduction(+ : lost)
  for (int32_t j = 0; j < static_cast<int32_t>(count); ++j) {
    const float relative = z[j] - peak;
    float d = (offset + rise * relative) * raised(relative) + (j == place ? g * steepness : 0.0f);
    if constexpr (capped) d *= slopes[j];
    const float kept = store(out + j, d);
    lost += expected * d - (sizeof(T) == 2 ? kept : 0.0f); // float32 products take the mean row away first
  }
  if (head.lost) head.lost[row] += lost;
}

// Sixteen words of 32 bits.
typedef uint32_t Words __attribute__((vector_size(64)));

inline Words low(Words a, Words b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

inline Words high(Words a, Words b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// A square of 16 × 16 words: four perfect shuffles of its rows.
template <typename T>
void transpose_square(const T* in, int64_t in_stride, T* out, int64_t out_stride) {
  Words now[16], next[16];
  for (int i = 0; i < 16; ++i) std::memcpy(&now[i], in + i * in_stride, sizeof(Words));
#pragma GCC unroll 4
  for (int round = 0; round < 4; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = low(now[i], now[i + 8]);
      next[2 * i + 1] = high(now[i], now[i + 8]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) now[i] = next[i];
  }
  for (int i = 0; i < 16; ++i) std::memcpy(out + i * out_stride, &now[i], sizeof(Words));
}

// (rows, columns) → (columns, rows).
template <typename T>
void transpose(const T* in, int64_t in_stride, int64_t rows, int64_t columns, T* out, int64_t out_stride) {
  constexpr int64_t S = 16;
  for (int64_t i = 0; i < rows; i += S)
    for (int64_t k = 0; k < columns; k += S) {
      if constexpr (sizeof(T) == 4) {
        if (i + S <= rows && k + S <= columns) {
          transpose_square(in + i * in_stride + k, in_stride, out + k * out_stride + i, out_stride);
          continue;
        }
      }
      for (int64_t ii = i; ii < std::min(i + S, rows); ++ii)
        for (int64_t kk = k; kk < std::min(k + S, columns); ++kk) out[kk * out_stride + ii] = in[ii * in_stride + kk];
    }
}

// Terms of a sum that are added up before they are added to the rest. Of float32 factors about as many as there are
// such parts, which makes its error grow with the fourth root of the depth and not with the square root.
template <typename T>
int64_t part_of(int64_t depth) {
  if (sizeof(T) == 2) return DEPTH;
  int64_t terms = 16;
  while (terms * terms < depth) terms *= 2;
  return std::min(terms, DEPTH);
}

// out = a·b, or added to it, over packed columns.
template <typename T>
void multiply(int64_t rows, int64_t columns, int64_t depth, int64_t terms, const T* a, int64_t a_stride, const T* packed, float* out, int64_t stride, bool add) {
  for (int64_t start = 0; start < depth; start += terms)
    at::native::cpublas::brgemm(
        rows, columns, std::min(terms, depth - start), a_stride, PANEL, stride, add || start > 0, a + start,
        packed + start * PANEL, out, sizeof(T) == 2);
}

// From each of the rows of a packed panel its own number.
inline void take_away(const float* centre, int64_t rows, float* panel) {
  for (int64_t k = 0; k < rows; ++k)
    for (int64_t j = 0; j < PANEL; ++j) panel[k * PANEL + j] -= centre[k];
}

// Rows of a block: equally many blocks for every thread, equally high.
inline int64_t height_of(int64_t rows, int64_t threads) {
  const int64_t blocks = (rows + threads * BLOCK - 1) / (threads * BLOCK) * threads;
  return std::max<int64_t>((rows + blocks - 1) / std::max<int64_t>(blocks, 1), 1);
}

// How many lines of so many words are packed before all threads meet: a multiple of `step`.
inline int64_t span_of(int64_t words, int64_t step, int64_t lines) {
  const int64_t whole = std::max<int64_t>(PACKED / words / step, 1) * step;
  return std::min(whole, (lines + step - 1) / step * step);
}

// Calls body(row, column, count, products) for every row and group of columns; in each row from the first column on.
template <typename T, typename Body>
void over_panels(const Head& head, Body body) {
  const int64_t words = head.width * sizeof(T) / 4, stride = head.weight_stride * sizeof(T) / 4;
  const int64_t height = height_of(head.rows, head.threads);
  const auto* hidden = static_cast<const T*>(head.hidden);
  const auto* weight = static_cast<const uint32_t*>(head.weight);
  const int64_t span = span_of(words, GROUP, head.columns);
  Room<uint32_t> packed(words * span);
#pragma omp parallel num_threads(head.threads)
  {
    Room<float> scratch(height * GROUP);
    for (int64_t first = 0; first < head.columns; first += span) {
      const int64_t last = std::min(first + span, head.columns);
#pragma omp for schedule(dynamic)
      for (int64_t column = first; column < last; column += PANEL) {
        uint32_t* panel = packed.data + (column - first) * words;
        // pairs of bfloat16 stay together, as the products want them
        transpose(weight + column * stride, stride, std::min(PANEL, last - column), words, panel, PANEL);
        if (head.centre) take_away(head.centre, words, reinterpret_cast<float*>(panel));
      }
#pragma omp for schedule(dynamic)
      for (int64_t row = 0; row < head.rows; row += height) {
        const int64_t rows = std::min(height, head.rows - row);
        for (int64_t group = first; group < last; group += GROUP) {
          const int64_t end = std::min(group + GROUP, last);
          for (int64_t column = group; column < end; column += PANEL)
            multiply(
                rows, std::min(PANEL, end - column), head.width, part_of<T>(head.width), hidden + row * head.hidden_stride, head.hidden_stride,
                reinterpret_cast<const T*>(packed.data + (column - first) * words), scratch.data + column - group, GROUP, false);
          for (int64_t i = 0; i < rows; ++i) body(row + i, group, end - group, scratch.data + i * GROUP);
        }
      }
    }
    at::native::cpublas::brgemm_release(sizeof(T) == 2);
  }
}

// (rows, depth) of A, row by row or column by column, into rows of `padded` elements, the last ones 0.
template <typename T>
void gather(const T* a, const Product& product, int64_t rows, int64_t depth, int64_t padded, T* out) {
  if (product.a_transposed)
    transpose(a, product.a_stride, depth, rows, out, padded);
  else
    for (int64_t i = 0; i < rows; ++i) std::memcpy(out + i * padded, a + i * product.a_stride, depth * sizeof(T));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = depth; k < padded; ++k) out[i * padded + k] = T(0);
}

// (depth, count) of B as the products want it.
inline void interleave(const float* b, int64_t stride, const float* centre, int64_t depth, int64_t count, float* out) {
  for (int64_t k = 0; k < depth; ++k)
    if (centre)
      for (int64_t j = 0; j < count; ++j) out[k * PANEL + j] = b[k * stride + j] - centre[j];
    else
      std::memcpy(out + k * PANEL, b + k * stride, count * sizeof(float));
}

inline void interleave(const BFloat16* b, int64_t stride, const float*, int64_t depth, int64_t count, BFloat16* out) {
  auto* pairs = reinterpret_cast<uint32_t*>(out);
  for (int64_t k = 0; k < depth; k += 2) {
    const auto* upper = reinterpret_cast<const uint16_t*>(b) + k * stride;
    const auto* lower = k + 1 < depth ? upper + stride : nullptr;
    uint32_t* row = pairs + k / 2 * PANEL;
    if (lower)
      for (int64_t j = 0; j < count; ++j) row[j] = upper[j] | static_cast<uint32_t>(lower[j]) << 16;
    else
      for (int64_t j = 0; j < count; ++j) row[j] = upper[j];
  }
}

template <typename T>
void accumulate(const Product& product) {
  const int64_t panels = (product.columns + PANEL - 1) / PANEL;
  const int64_t height = height_of(product.rows, product.threads);
  const int64_t span = span_of(panels * PANEL * sizeof(T) / 4, DEPTH, product.depth), panel = span * PANEL;
  Room<T> packed(panels * panel);
#pragma omp parallel num_threads(product.threads)
  {
    Room<T> block(height * DEPTH);
    for (int64_t first = 0; first < product.depth; first += span) {
      const int64_t last = std::min(first + span, product.depth);
#pragma omp for schedule(dynamic) collapse(2)
      for (int64_t k = first; k < last; k += PANEL)
        for (int64_t p = 0; p < panels; ++p)
          interleave(
              static_cast<const T*>(product.b) + k * product.b_stride + p * PANEL, product.b_stride, product.centre ? product.centre + p * PANEL : nullptr,
              std::min(PANEL, last - k), std::min(PANEL, product.columns - p * PANEL), packed.data + p * panel + (k - first) * PANEL);
#pragma omp for schedule(dynamic)
      for (int64_t row = 0; row < product.rows; row += height) {
        const int64_t rows = std::min(height, product.rows - row);
        for (int64_t start = first; start < last; start += DEPTH) {
          const int64_t depth = std::min(DEPTH, last - start), padded = depth + depth % 2;
          const T* a = static_cast<const T*>(product.a) + start * (product.a_transposed ? product.a_stride : 1);
          gather(a + row * (product.a_transposed ? 1 : product.a_stride), product, rows, depth, padded, block.data);
          for (int64_t p = 0; p < panels; ++p)
            multiply(
                rows, std::min(PANEL, product.columns - p * PANEL), sizeof(T) == 2 ? padded : depth, part_of<T>(product.depth), block.data, padded,
                packed.data + p * panel + (start - first) * PANEL, product.out + row * product.out_stride + p * PANEL, product.out_stride, true);
        }
      }
    }
    at::native::cpublas::brgemm_release(sizeof(T) == 2);
  }
}

// As over_panels, over products that are there.
template <typename Body>
void over_products(const Head& head, Body body) {
#pragma omp parallel for num_threads(head.threads)
  for (int64_t row = 0; row < head.rows; ++row)
    for (int64_t column = 0; column < head.columns; column += GROUP)
      body(row, column, std::min(GROUP, head.columns - column), head.products + row * head.products_stride + column);
}

} // namespace

extern "C" {

// Whether this CPU has the products; 16-bit ones may be missing where 32-bit ones are there.
int32_t head_multiplies(int32_t narrow) {
  alignas(64) float a[32] = {}, b[2 * PANEL] = {}, c[PANEL];
  try {
    if (narrow)
      at::native::cpublas::brgemm(1, 16, 2, 2, PANEL, PANEL, false, reinterpret_cast<BFloat16*>(a), reinterpret_cast<BFloat16*>(b), c, true);
    else
      at::native::cpublas::brgemm(1, 16, 2, 2, PANEL, PANEL, false, a, b, c, false);
    at::native::cpublas::brgemm_release(narrow);
  } catch (const std::exception&) {
    return 0;
  }
  return 1;
}

// Takes all columns into the statistics of the rows.
void head_statistics(const Head* given) {
  const Head& head = *given;
  std::vector<Sums> sums(head.rows);
  for (int64_t i = 0; i < head.rows; ++i) sums[i] = {head.total[i], head.weighted[i]};
  auto body = [&](int64_t row, int64_t column, int64_t count, const float* products) {
    take(head, sums.data(), row, column, count, products);
  };
  if (!head.hidden)
    over_products(head, body);
  else if (head.narrow)
    over_panels<BFloat16>(head, body);
  else
    over_panels<float>(head, body);
  for (int64_t i = 0; i < head.rows; ++i) {
    head.total[i] = static_cast<float>(sums[i].total);
    head.weighted[i] = static_cast<float>(sums[i].weighted);
  }
}

// d loss / d products.
void head_gradients(const Head* given) {
  const Head& head = *given;
  const bool capped = head.softcap > 0;
  const auto row_gradients = head.narrow ? (capped ? differentiate<BFloat16, true> : differentiate<BFloat16, false>)
                                         : (capped ? differentiate<float, true> : differentiate<float, false>);
  auto body = [&](int64_t row, int64_t column, int64_t count, const float* products) {
    row_gradients(head, row, column, count, products);
  };
  if (!head.hidden)
    over_products(head, body);
  else if (head.narrow)
    over_panels<BFloat16>(head, body);
  else
    over_panels<float>(head, body);
}

void add_product(const Product* given) {
  given->narrow ? accumulate<BFloat16>(*given) : accumulate<float>(*given);
}

}
