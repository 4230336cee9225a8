// What a Runner watches and measures.

#ifndef RLCORE_WATCH_HPP
#define RLCORE_WATCH_HPP

#include <cstdint>
#include <limits>

namespace rlcore {

// Why the fallback pose takes the place of the policy's targets.
enum class Fault : std::uint8_t {
  none,
  not_finite,   // an input is NaN or infinite
  missing,      // an input with an age limit has never been updated
  stale,        // an input is too old, or has not changed for too long
  saturated,    // an input is at its full scale, or further from its mean than it ever was
  joint_limit,  // a measured joint is outside its limits
  broken        // the policy's own action is not finite
};

inline const char* text(Fault fault) noexcept {
  constexpr const char* names[] = {"none", "not finite", "missing", "stale", "saturated", "joint limit", "broken"};
  return names[static_cast<int>(fault)];
}

// What of an input is watched besides that it is finite. 0 and inf: nothing.
struct Watch {
  float full_scale = std::numeric_limits<float>::infinity();  // what is bound is saturated from this magnitude on
  int max_still = 0;       // steps through which not a single number of it may change
  int max_age = 0;         // steps since the latest call of updated()
};

struct Options {
  bool latch = true;           // a fault stays until reset(); else the policy begins anew once its inputs are sound
  float max_deviation = 0.0f;  // standard deviations from the training's mean, from which an input is saturated; 0: any
  float joint_margin = 0.0f;   // how far outside of its limits a measured joint may be
};

// Times of steps in bins that are an eighth of an octave wide.
class Timing {
 public:
  void add(std::uint64_t ns) noexcept {
    ++bins_[bin(ns)];
    ++count_;
    sum_ += ns;
    most_ = ns > most_ ? ns : most_;
  }
  std::uint64_t count() const noexcept { return count_; }
  double mean() const noexcept {  // s
    return count_ == 0 ? 0.0 : 1e-9 * static_cast<double>(sum_) / static_cast<double>(count_);
  }
  double most() const noexcept { return 1e-9 * static_cast<double>(most_); }
  // Seconds within which that share of the steps was done, such as 0.99; to 1/8.
  double percentile(double share) const noexcept {
    std::uint64_t seen = 0;
    for (int i = 0; i < num_bins; ++i) {
      seen += bins_[i];
      if (seen > 0 && static_cast<double>(seen) >= share * static_cast<double>(count_)) {
        const double end = 1e-9 * static_cast<double>(edge(i + 1));
        return end < most() ? end : most();
      }
    }
    return most();
  }

 private:
  static constexpr int num_bins = 64 * 8;
  static int bin(std::uint64_t ns) noexcept {
    if (ns < 8) return static_cast<int>(ns);
    int octave = 0;
    while (ns >> octave >= 16) ++octave;
    return octave * 8 + static_cast<int>(ns >> octave);
  }
  static std::uint64_t edge(int i) noexcept {
    return i < 8 ? static_cast<std::uint64_t>(i) : static_cast<std::uint64_t>(8 + i % 8) << (i / 8 - 1);
  }
  std::uint64_t bins_[num_bins] = {}, count_ = 0, sum_ = 0, most_ = 0;
};

}  // namespace rlcore

#endif
