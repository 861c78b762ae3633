// What the files that decode on a CPU share: an exponential, and attention of one query over columns of a cache.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

// x <= 0 or NaN; 0 below -87, where float32 has no normal numbers left.
inline float raised(float x) {
  const float y = x < -87.0f ? -87.0f : x;
  const float n = (y * 1.44269504f + 12582912.0f) - 12582912.0f; // to the nearest integer
  const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  const float tail = 0.5f + r * (1.6666667e-1f + r * (4.1666667e-2f + r * (8.3333333e-3f + r * (1.3888889e-3f + r * 1.9841270e-4f))));
  const uint32_t bits = (static_cast<uint32_t>(static_cast<int32_t>(n)) + 127u) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  const float result = power + power * (r + r * r * tail);
  return x < -87.0f ? 0.0f : result;
}

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
