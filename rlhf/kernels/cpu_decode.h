// What the files that decode on a CPU share: attention of one query over columns of a cache.
#pragma once

#include "cpu_exponential.h"

#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

struct BFloat16 {
  uint16_t bits;
};

inline float wide(float x) { return x; }

inline float wide(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void store(float* out, float value) { *out = value; }

inline void store(BFloat16* out, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out->bits = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}

// Some of a row's keys and values, end to end.
template <typename T>
struct Stretch {
  const T *keys, *values;
  int64_t columns;
};

// Of one query over stretches of columns; D = 0 where the compiler does not know the dimension.
template <typename T, int D>
void attend(const T* query, const Stretch<T>* stretches, int64_t count, T* out, int64_t width, float scale,
            std::vector<float>& weights, std::vector<float>& sums) {
  const int64_t dim = D ? D : width;
  float peak = -std::numeric_limits<float>::infinity();
  float* weight = weights.data();
  for (const Stretch<T>* part = stretches; part < stretches + count; ++part)
    for (int64_t j = 0; j < part->columns; ++j) {
      const T* key = part->keys + j * dim;
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int64_t d = 0; d < dim; ++d) sum += wide(query[d]) * wide(key[d]);
      *weight++ = sum * scale;
      peak = sum * scale > peak ? sum * scale : peak;
    }
  const int64_t n = weight - weights.data();
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < n; ++j) total += weights[j] = raised(weights[j] - peak);
  float fixed[D ? D : 1];
  float* sum = D ? fixed : sums.data();
  for (int64_t d = 0; d < dim; ++d) sum[d] = 0.0f;
  weight = weights.data();
  for (const Stretch<T>* part = stretches; part < stretches + count; ++part)
    for (int64_t j = 0; j < part->columns; ++j) {
      const T* value = part->values + j * dim;
      const float share = *weight++;
#pragma omp simd
      for (int64_t d = 0; d < dim; ++d) sum[d] += share * wide(value[d]);
    }
  for (int64_t d = 0; d < dim; ++d) store(out + d, sum[d] / total);
}

} // namespace
