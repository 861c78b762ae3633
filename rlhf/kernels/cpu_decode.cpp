// One token a row on a CPU: attention over a cache, and the draw from the distribution of the next token.
// cpu_build.py compiles this, cpu_decode.py calls it.
//
// Every row's numbers are made in the same order whatever the number of threads and of other rows, and only
// from its own columns: no row depends on how long another is.

#include "cpu_decode.h"

#include <algorithm>
#include <cmath>

extern "C" {
// Kept the same as cpu_decode.Attention. Strides are in elements.
struct Attention {
  const void* query; // (rows, heads, dim)
  const void* key;   // (rows, key_heads, dim) of the new token
  const void* value;
  void* keys;        // (rows, key_heads, columns, dim)
  void* values;
  const int64_t* lengths; // (rows,) tokens in the cache before the new one
  void* out;              // (rows, heads, dim)
  int64_t rows, heads, key_heads, dim, columns;
  int64_t query_row, query_head, key_row, key_head, value_row, value_head;
  int64_t window;  // tokens attended to, the new one included
  int64_t threads;
  float scale;
  int32_t narrow;  // all but lengths are bfloat16, not float32
};

// Kept the same as cpu_decode.Draw.
struct Draw {
  const float* logits; // (rows, columns)
  const float* floors; // (rows,) smaller logits are not drawn; null: all are
  const double* noise; // (rows,) in [0, 1)
  int64_t* tokens;     // (rows,)
  float* logprobs;
  float* entropies;
  int64_t rows, columns, stride, threads;
  float temperature;
};
}

namespace {

template <typename T, int D>
void attend_all(const Attention& a) {
  const int64_t queries = a.heads / a.key_heads; // that share a key head
#pragma omp parallel num_threads(a.threads) if (a.threads > 1)
  {
    std::vector<float> weights(a.columns), sums(a.dim);
#pragma omp for schedule(static)
    for (int64_t pair = 0; pair < a.rows * a.key_heads; ++pair) {
      const int64_t row = pair / a.key_heads, head = pair % a.key_heads;
      T* keys = static_cast<T*>(a.keys) + pair * a.columns * a.dim;
      T* values = static_cast<T*>(a.values) + pair * a.columns * a.dim;
      const int64_t last = a.lengths[row], first = std::max<int64_t>(0, last + 1 - a.window);
      std::copy_n(static_cast<const T*>(a.key) + row * a.key_row + head * a.key_head, a.dim, keys + last * a.dim);
      std::copy_n(static_cast<const T*>(a.value) + row * a.value_row + head * a.value_head, a.dim, values + last * a.dim);
      const Stretch<T> seen{keys + first * a.dim, values + first * a.dim, last + 1 - first};
      for (int64_t query = head * queries; query < (head + 1) * queries; ++query)
        attend<T, D>(static_cast<const T*>(a.query) + row * a.query_row + query * a.query_head, &seen, 1,
                     static_cast<T*>(a.out) + (row * a.heads + query) * a.dim, a.dim, a.scale, weights, sums);
    }
  }
}

template <typename T>
void attend_any(const Attention& a) {
  switch (a.dim) {
    case 32: return attend_all<T, 32>(a);
    case 64: return attend_all<T, 64>(a);
    case 128: return attend_all<T, 128>(a);
    default: return attend_all<T, 0>(a);
  }
}

constexpr int64_t BLOCK = 512; // columns whose weights are summed before a draw looks into them

void draw_row(const Draw& draw, int64_t row, std::vector<float>& weights, std::vector<double>& sums) {
  const float* logits = draw.logits + row * draw.stride;
  const float floor = draw.floors ? draw.floors[row] : -std::numeric_limits<float>::infinity();
  const int64_t columns = draw.columns;
  float peak = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : peak)
  for (int64_t j = 0; j < columns; ++j) peak = logits[j] > peak ? logits[j] : peak;
  double total = 0.0, weighted = 0.0;
  for (int64_t block = 0; block * BLOCK < columns; ++block) {
    const int64_t first = block * BLOCK, last = std::min(first + BLOCK, columns);
    double sum = 0.0, moment = 0.0;
#pragma omp simd reduction(+ : sum, moment)
    for (int64_t j = first; j < last; ++j) {
      const float x = (logits[j] - peak) / draw.temperature;
      const float power = raised(x);
      const float weight = logits[j] < floor ? 0.0f : power;
      weights[j] = weight;
      sum += weight;
      moment += weight * (x < -87.0f ? -87.0f : x); // 0, not NaN, where x is infinite
    }
    sums[block] = sum;
    total += sum;
    weighted += moment;
  }
  const double norm = std::log(total);
  draw.entropies[row] = static_cast<float>(norm - weighted / total);
  int64_t token = columns - 1;
  if (total == total) {
    const double level = draw.noise[row] * total;
    double below = 0.0;
    int64_t block = 0;
    while ((block + 1) * BLOCK < columns && below + sums[block] <= level) below += sums[block++];
    token = block * BLOCK;
    for (const int64_t last = std::min(token + BLOCK, columns); token < last; ++token)
      if ((below += weights[token]) > level) break;
    token = std::min(token, columns - 1);
    while (token > 0 && weights[token] == 0.0f) --token; // the total was rounded up: the last that can be drawn
  }
  draw.tokens[row] = token;
  draw.logprobs[row] = static_cast<float>((logits[token] - peak) / draw.temperature - norm);
}

} // namespace

extern "C" void decode_attention(const Attention* attention) {
  if (attention->narrow) return attend_any<BFloat16>(*attention);
  attend_any<float>(*attention);
}

extern "C" void draw_tokens(const Draw* draw) {
#pragma omp parallel num_threads(draw->threads) if (draw->threads > 1)
  {
    std::vector<float> weights(draw->columns);
    std::vector<double> sums((draw->columns + BLOCK - 1) / BLOCK);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < draw->rows; ++row) draw_row(*draw, row, weights, sums);
  }
}
