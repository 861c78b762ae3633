// e^x for weights of a softmax.
#pragma once

#include <cstdint>
#include <cstring>

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

} // namespace
