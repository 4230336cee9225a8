// What an exported policy is computed with: plain functions over arrays of fixed size.
//
// `policy.hpp`, which `rlcore export --cpp` writes, calls them one after the other. C++17, no dependency, no
// allocation, no exception, no state. All numbers are float32; indices and truth values are floats, too (0 is false).
//
// Do not compile with -ffast-math: a number that is not finite must stay one, so that a controller can see it.

#ifndef RLCORE_POLICY_HPP
#define RLCORE_POLICY_HPP

#if defined(__FAST_MATH__)
#error "rlcore: -ffast-math hides what is not a number; compile with -O3 -march=native alone"
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace rlcore {

constexpr float inf = std::numeric_limits<float>::infinity();

// A part of the observation, as the file's metadata has it.
struct ObservationTerm {
  const char* group;
  const char* name;
  int first;           // place in the input
  int size;            // numbers there: history * width
  int history;         // steps, the oldest first; 1: the present alone
  const float* scale;  // [width], after the clip; nullptr: none
  const float* low;    // [width], nullptr: no clip
  const float* high;
  const char* const* joints;  // [width], names of what is measured, in order; nullptr: not known
};

// A part of the action: what a controller is to make of the policy's output.
struct ActionTerm {
  const char* name;
  const char* kind;  // position, velocity, effort and so on, as docs/deployment.md lists; "" where it is not known
  int first;
  int size;
  const float* scale;   // [size], nullptr: 1
  const float* offset;  // [size], added after the scale; nullptr: 0
  const float* low;     // [size], clip of the result; nullptr: none
  const float* high;
};

// A joint as the simulator has it; what the file does not tell is 0, and infinite of limits.
struct Joint {
  const char* name;
  float default_position;  // rad or m: what relative observations count from
  float stiffness;         // of the drive, N m / rad or N / m
  float damping;           // N m s / rad or N s / m
  float low, high;         // limits of its position
  float velocity_limit;    // rad/s or m/s
  float effort_limit;      // N m or N
  const char* unit;        // rad or m; empty: not known
};

// Exponential to 1.3e-7 of it, of a kind that compilers vectorize, which they do not with std::exp. Cody & Waite's
// reduction x = n ln 2 + r, and the Taylor series of exp(r) to the seventh power, |r| <= 0.35. Above 88.4 infinite.
inline float exp_of(float x) noexcept {
  x = x > 89.0f ? 89.0f : x;  // false for NaN, which stays
  x = x < -87.0f ? -87.0f : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  std::uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;  // 2^n
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

inline float sigmoid_of(float x) noexcept { return 1.0f / (1.0f + exp_of(-x)); }

// Padé's approximant of order (7, 6) near 0, where the other form loses digits.
inline float tanh_of(float x) noexcept {
  const float s = x * x;
  const float near_zero = x * (135135.0f + s * (17325.0f + s * (378.0f + s))) /
                          (135135.0f + s * (62370.0f + s * (3150.0f + s * 28.0f)));
  const float size = x < 0.0f ? -x : x;
  const float far = 1.0f - 2.0f / (exp_of(2.0f * size) + 1.0f);
  return size < 0.6f ? near_zero : (x < 0.0f ? -far : far);
}

// Functions of one number.
struct Exp { float operator()(float x) const noexcept { return exp_of(x); } };
struct Sigmoid { float operator()(float x) const noexcept { return sigmoid_of(x); } };
struct Tanh { float operator()(float x) const noexcept { return tanh_of(x); } };
struct Relu { float operator()(float x) const noexcept { return x < 0.0f ? 0.0f : x; } };
struct Abs { float operator()(float x) const noexcept { return std::fabs(x); } };
struct Neg { float operator()(float x) const noexcept { return -x; } };
struct Sqrt { float operator()(float x) const noexcept { return std::sqrt(x); } };
struct Square { float operator()(float x) const noexcept { return x * x; } };
struct Reciprocal { float operator()(float x) const noexcept { return 1.0f / x; } };
struct Log { float operator()(float x) const noexcept { return std::log(x); } };
struct Erf { float operator()(float x) const noexcept { return std::erf(x); } };
struct Sin { float operator()(float x) const noexcept { return std::sin(x); } };
struct Cos { float operator()(float x) const noexcept { return std::cos(x); } };
struct Floor { float operator()(float x) const noexcept { return std::floor(x); } };
struct Ceil { float operator()(float x) const noexcept { return std::ceil(x); } };
struct Truncate { float operator()(float x) const noexcept { return std::trunc(x); } };
struct Sign { float operator()(float x) const noexcept { return x > 0.0f ? 1.0f : (x < 0.0f ? -1.0f : x); } };
struct Softsign { float operator()(float x) const noexcept { return x / (1.0f + std::fabs(x)); } };
struct Not { float operator()(float x) const noexcept { return x == 0.0f ? 1.0f : 0.0f; } };
struct True { float operator()(float x) const noexcept { return x != 0.0f ? 1.0f : 0.0f; } };
struct IsNaN { float operator()(float x) const noexcept { return x != x ? 1.0f : 0.0f; } };
struct IsInf {
  bool up, down;
  float operator()(float x) const noexcept { return (up && x == inf) || (down && x == -inf) ? 1.0f : 0.0f; }
};
struct Softplus {
  float operator()(float x) const noexcept { return x > 20.0f ? x : std::log1p(std::exp(x)); }
};
struct Elu {
  float alpha;
  float operator()(float x) const noexcept { return x < 0.0f ? alpha * (exp_of(x) - 1.0f) : x; }
};
struct Selu {
  float alpha, gamma;
  float operator()(float x) const noexcept { return gamma * (x > 0.0f ? x : alpha * (exp_of(x) - 1.0f)); }
};
struct LeakyRelu {
  float alpha;
  float operator()(float x) const noexcept { return x < 0.0f ? alpha * x : x; }
};
struct HardSigmoid {
  float alpha, beta;
  float operator()(float x) const noexcept {
    const float y = alpha * x + beta;
    return y < 0.0f ? 0.0f : (y > 1.0f ? 1.0f : y);
  }
};
struct Clip {
  float low, high;
  float operator()(float x) const noexcept {
    x = x < low ? low : x;
    return x > high ? high : x;
  }
};

// Functions of two. What is not a number stays so in all that return numbers.
struct Add { float operator()(float a, float b) const noexcept { return a + b; } };
struct Sub { float operator()(float a, float b) const noexcept { return a - b; } };
struct Mul { float operator()(float a, float b) const noexcept { return a * b; } };
struct Div { float operator()(float a, float b) const noexcept { return a / b; } };
struct Pow { float operator()(float a, float b) const noexcept { return std::pow(a, b); } };
struct Max { float operator()(float a, float b) const noexcept { return a < b || b != b ? b : a; } };
struct Min { float operator()(float a, float b) const noexcept { return a > b || b != b ? b : a; } };
struct PRelu { float operator()(float x, float slope) const noexcept { return x < 0.0f ? slope * x : x; } };
struct Greater { float operator()(float a, float b) const noexcept { return a > b ? 1.0f : 0.0f; } };
struct Less { float operator()(float a, float b) const noexcept { return a < b ? 1.0f : 0.0f; } };
struct Equal { float operator()(float a, float b) const noexcept { return a == b ? 1.0f : 0.0f; } };
struct And { float operator()(float a, float b) const noexcept { return a != 0.0f && b != 0.0f ? 1.0f : 0.0f; } };
struct Or { float operator()(float a, float b) const noexcept { return a != 0.0f || b != 0.0f ? 1.0f : 0.0f; } };

// y[i] = f(x[i])
template <int N, class F>
inline void map(float* y, const float* x, F f) noexcept {
  for (int i = 0; i < N; ++i) y[i] = f(x[i]);
}

// y[i] = f(a[i], b[i]); where a step is 0, one number stands for all.
template <int N, int StepA, int StepB, class F>
inline void zip(float* y, const float* a, const float* b, F f) noexcept {
  for (int i = 0; i < N; ++i) y[i] = f(a[i * StepA], b[i * StepB]);
}

// y[i] = a[i] where the condition is true, else b[i]
template <int N, int StepC, int StepA, int StepB>
inline void where(float* y, const float* condition, const float* a, const float* b) noexcept {
  for (int i = 0; i < N; ++i) y[i] = condition[i * StepC] != 0.0f ? a[i * StepA] : b[i * StepB];
}

// Rows of N numbers, each so far from the one before.
template <int Rows, int N, int StepY, int StepX>
inline void copy(float* y, const float* x) noexcept {
  for (int r = 0; r < Rows; ++r) std::memcpy(y + r * StepY, x + r * StepX, N * sizeof(float));
}

// y[i] = x[place[i]]
template <int N>
inline void gather(float* y, const float* x, const int* place) noexcept {
  for (int i = 0; i < N; ++i) y[i] = x[place[i]];
}

// Sums, means and extremes over the middle of [Outer, N, Inner].
template <int Outer, int N, int Inner, class F>
inline void reduce(float* y, const float* x, F f, float factor = 1.0f) noexcept {
  for (int o = 0; o < Outer; ++o)
    for (int i = 0; i < Inner; ++i) {
      float total = x[o * N * Inner + i];
      for (int n = 1; n < N; ++n) total = f(total, x[(o * N + n) * Inner + i]);
      y[o * Inner + i] = total * factor;
    }
}

// Index of the largest (or smallest) over the middle of [Outer, N, Inner]; the first of equals.
template <int Outer, int N, int Inner, bool Largest>
inline void arg(float* y, const float* x) noexcept {
  for (int o = 0; o < Outer; ++o)
    for (int i = 0; i < Inner; ++i) {
      int best = 0;
      for (int n = 1; n < N; ++n) {
        const float now = x[(o * N + n) * Inner + i], before = x[(o * N + best) * Inner + i];
        if (Largest ? now > before : now < before) best = n;
      }
      y[o * Inner + i] = static_cast<float>(best);
    }
}

// The K largest (or smallest) over the middle of [Outer, N, Inner] in order, and where they are; the first of equals.
template <int Outer, int N, int Inner, int K, bool Largest>
inline void top(float* values, float* places, const float* x) noexcept {
  for (int o = 0; o < Outer; ++o)
    for (int i = 0; i < Inner; ++i) {
      bool taken[N] = {};
      for (int k = 0; k < K; ++k) {
        int best = -1;
        for (int n = 0; n < N; ++n) {
          if (taken[n]) continue;
          const float now = x[(o * N + n) * Inner + i], before = best < 0 ? 0.0f : x[(o * N + best) * Inner + i];
          if (best < 0 || (Largest ? now > before : now < before)) best = n;
        }
        taken[best] = true;
        values[(o * K + k) * Inner + i] = x[(o * N + best) * Inner + i];
        places[(o * K + k) * Inner + i] = static_cast<float>(best);
      }
    }
}

// y[o, k, i] = x[o, place[o, k, i], i], x [Outer, N, Inner], y and place [Outer, K, Inner]
template <int Outer, int N, int Inner, int K>
inline void gather_along(float* y, const float* x, const float* place) noexcept {
  for (int o = 0; o < Outer; ++o)
    for (int k = 0; k < K; ++k)
      for (int i = 0; i < Inner; ++i) {
        const int at = (o * K + k) * Inner + i;
        y[at] = x[(o * N + static_cast<int>(place[at])) * Inner + i];
      }
}

// Softmax of each of so many rows, or its logarithm.
template <int Rows, int N, bool Logarithm>
inline void softmax(float* y, const float* x) noexcept {
  for (int r = 0; r < Rows; ++r, x += N, y += N) {
    float most = x[0], sum = 0.0f;
    for (int i = 1; i < N; ++i) most = x[i] > most ? x[i] : most;
    for (int i = 0; i < N; ++i) sum += std::exp(x[i] - most);
    const float log_sum = std::log(sum);
    for (int i = 0; i < N; ++i) y[i] = Logarithm ? x[i] - most - log_sum : std::exp(x[i] - most) / sum;
  }
}

#if defined(__AVX__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

// Numbers that are multiplied at once.
#if defined(__GNUC__)
typedef float Lane __attribute__((vector_size(lanes * sizeof(float))));
#else
struct Lane {
  float v[lanes];
  Lane& operator+=(const Lane& other) noexcept {
    for (int i = 0; i < lanes; ++i) v[i] += other.v[i];
    return *this;
  }
  friend Lane operator*(float a, Lane b) noexcept {
    for (int i = 0; i < lanes; ++i) b.v[i] *= a;
    return b;
  }
};
#endif

constexpr int panel_width = 64;

// Width outputs of a linear layer, the sums in registers; w is [In, Width].
template <int In, int Width, int Out>
inline void panel(float* y, const float* x, const float* w, const float* b) noexcept {
  constexpr int count = Width / lanes;
  Lane sum[count];
  std::memcpy(sum, b, sizeof sum);
  for (int i = 0; i < In; ++i) {
    const float value = x[i];
    for (int k = 0; k < count; ++k) {
      Lane part;
      std::memcpy(&part, w + i * Width + k * lanes, sizeof part);
      sum[k] += value * part;
    }
  }
  std::memcpy(y, sum, Out * sizeof(float));
}

// y [Rows, Out] = x [Rows, In] W^T + b. Weights come in panels of 64 outputs, each [In, 64], so that they are read one
// after the other and outputs, not inputs, are what is vectorized: no sum has to be taken apart. The last panel is as
// wide as is needed, in eights; b is as long as all of them.
template <int Rows, int In, int Out>
inline void linear(float* y, const float* x, const float* w, const float* b) noexcept {
  constexpr int full = Out / panel_width, rest = Out % panel_width, tail = (rest + 7) / 8 * 8;
  for (int r = 0; r < Rows; ++r, x += In, y += Out) {
    for (int p = 0; p < full; ++p)
      panel<In, panel_width, panel_width>(y + p * panel_width, x, w + p * panel_width * In, b + p * panel_width);
    if constexpr (rest > 0)
      panel<In, tail, rest>(y + full * panel_width, x, w + full * panel_width * In, b + full * panel_width);
  }
}

// One step of an LSTM cell, from the sums of input, output, forget and cell gate (ONNX's order), [4 N].
template <int N>
inline void lstm(float* h, float* c, const float* gates, const float* c_before) noexcept {
  for (int i = 0; i < N; ++i) {
    c[i] = sigmoid_of(gates[2 * N + i]) * c_before[i] + sigmoid_of(gates[i]) * tanh_of(gates[3 * N + i]);
    h[i] = sigmoid_of(gates[N + i]) * tanh_of(c[i]);
  }
}

// One step of a GRU cell, from the sums of update, reset and hidden gate, [3 N] by input and by state.
template <int N>
inline void gru(float* h, const float* by_input, const float* by_state, const float* h_before) noexcept {
  for (int i = 0; i < N; ++i) {
    const float z = sigmoid_of(by_input[i] + by_state[i]);
    const float r = sigmoid_of(by_input[N + i] + by_state[N + i]);
    const float n = tanh_of(by_input[2 * N + i] + r * by_state[2 * N + i]);
    h[i] = (1.0f - z) * n + z * h_before[i];
  }
}

}  // namespace rlcore

#endif
