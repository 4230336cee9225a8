// What stands between a robot and an exported policy: observations by the names of their terms, with scale, clip and
// history; joints by name; actions as targets; and a fallback pose where something is wrong.
//
//   static rlcore::Runner<policy::Policy> runner;
//   runner.joints(names);                    // the robot's order; the policy's is in the file
//   runner.bind_joints("joint_pos", q);      // arrays that the robot's driver writes to
//   runner.bind("command", command);
//   runner.bind("actions", runner.last_action());
//   runner.limits(low, high);
//   runner.fallback(pose);
//   runner.start();
//   for (;;) send(runner.step());            // targets of the joints that it drives, in the robot's order
//
// What is wrong at the start is told by std::invalid_argument. A step allocates nothing and throws nothing. A Runner is
// used by one thread, and as large as the policy's numbers in between: make it static or a member.

#ifndef RLCORE_RUNNER_HPP
#define RLCORE_RUNNER_HPP

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "rlcore_joints.hpp"
#include "rlcore_policy.hpp"
#include "rlcore_watch.hpp"

namespace rlcore {

// Numbers that belong to somebody else.
struct Span {
  const float* data = nullptr;
  int size = 0;
  constexpr Span() noexcept = default;
  constexpr Span(const float* first, int count) noexcept : data(first), size(count) {}
  template <int N>
  constexpr Span(const float (&array)[N]) noexcept : data(array), size(N) {}
  template <class Container, class = decltype(std::declval<const Container&>().data())>
  Span(const Container& container) noexcept : data(container.data()), size(static_cast<int>(container.size())) {}
};

template <class Policy>
class Runner {
 public:
  using Output = typename Policy::Action;
  static constexpr int num_terms = Policy::num_observation_terms;
  static constexpr int num_inputs = num_terms + (Policy::mask_size > 0 ? 1 : 0);  // the mask of choices is the last
  static constexpr int num_actions = Policy::action_size;

  explicit Runner(Options options = Options()) noexcept : options_(options) {
    for (int i = 0; i < num_actions; ++i) {
      low_[i] = -inf;
      high_[i] = inf;
    }
  }

  // The robot's joints in the order of its drivers: all that the policy drives and what it reads, by their names in the
  // file. Targets, limits and poses are of those that it drives, in this order.
  template <class Given>
  void joints(const Given& names) {
    if (by_joints_) fail("joints: arrays are bound in the order of before; call it once, before bind_joints()");
    joints_.name(names);
  }

  // Refuse a measured pose, of all of joints() in that order, that is outside of the file's limits.
  void check_pose(Span measured) const {
    const std::size_t count = joints_.names().size();
    if (measured.data == nullptr || static_cast<std::size_t>(measured.size) != count)
      fail("check_pose: the array has " + std::to_string(measured.size) + " numbers, and joints() has named " +
           std::to_string(count));
    joints_.check(measured.data);
  }

  // The place of a target's joint among those of joints(): as it is where the policy drives all of them.
  int driven(int target) const noexcept { return joints_.joint(target); }

  // Where a term's numbers are to be read at each step, in the file's order; returns its number, for updated(). The
  // name is the term's, group/term where several groups have it, or the group's of the mask of choices.
  int bind(std::string_view name, Span values, Watch watch = Watch()) {
    const int i = find(name);
    if (values.data == nullptr) fail("bind: '" + std::string(name) + "' is bound to no array");
    const bool remembers = i < num_terms && Policy::observation_terms[i].history > 1;
    if (values.size != width(i))
      fail("bind: '" + std::string(name) + "' takes " + std::to_string(width(i)) + " numbers" +
           (remembers ? " (its history is kept here)" : "") + ", and the array has " + std::to_string(values.size));
    inputs_[i].data = values.data;
    inputs_[i].watch = watch;
    for (int k = 0; k < width(i); ++k) place_[start(i) + k] = k;
    return i;
  }

  // The same for numbers that are one for each joint, of all joints of joints() in that order. The term takes its own.
  int bind_joints(std::string_view name, Span values, Watch watch = Watch()) {
    const int i = find(name), count = static_cast<int>(joints_.names().size());
    const std::string called = "bind_joints: '" + std::string(name) + "' ";
    if (count == 0) fail(called + "is in an order that is not known; call joints() first");
    const char* const* own = i < num_terms ? Policy::observation_terms[i].joints : nullptr;
    if (own == nullptr && width(i) != Policy::num_joint_names)
      fail(called + "has " + std::to_string(width(i)) + " numbers, and there are " +
           std::to_string(Policy::num_joint_names) + " joints; bind() it in the file's order");
    if (values.data == nullptr || values.size != count)
      fail(called + "is bound to an array of " + std::to_string(values.size) + " numbers, and joints() has named " +
           std::to_string(count) + "; give one number for each");
    for (int k = 0; k < width(i); ++k) {
      const char* joint = own == nullptr ? Policy::joint_names[k] : own[k];
      place_[start(i) + k] = place_of(joint, joints_.names());
      if (place_[start(i) + k] < 0)
        fail(called + "reads joint '" + joint + "', which joints() has not named; name it, or bind() in its order");
    }
    inputs_[i].data = values.data;
    inputs_[i].watch = watch;
    by_joints_ = true;
    return i;
  }

  // Limits of the targets, in the robot's order: beyond them a target is cut off. Of the same unit as the targets.
  void limits(Span low, Span high) {
    if (Policy::discrete) fail("limits: the policy's actions are choices, which have none");
    sized("limits", low);
    sized("limits", high);
    for (int i = 0; i < num_actions; ++i) {
      if (!(low.data[i] <= high.data[i]))
        fail("limits: the lower one of joint " + std::to_string(i) + " is not below the upper; set numbers in order");
      low_[i] = low.data[i];
      high_[i] = high.data[i];
    }
    limited_ = true;
  }

  // Measured joints, in the robot's order and the unit of the limits: outside of these the fallback pose is taken.
  void watch_joints(Span measured) {
    sized("watch_joints", measured);
    if (!limited_) fail("watch_joints: there are no limits to hold the joints to; call limits() first");
    measured_ = measured.data;
  }

  // What is sent where something is wrong, in the robot's order: targets, or choices.
  template <int N>
  void fallback(const Output (&pose)[N]) {
    fallback(pose, N);
  }
  void fallback(const Output* pose, int size) {
    if (size != num_actions)
      fail("fallback: the pose has " + std::to_string(size) + " numbers, and an action " + std::to_string(num_actions));
    std::memcpy(pose_, pose, sizeof pose_);
    posed_ = true;
  }

  // Checks that nothing is missing. Without a fallback the action that the file calls safe is taken.
  void start() {
    for (int i = 0; i < num_inputs; ++i)
      if (inputs_[i].data == nullptr)
        fail("start: the input '" + name_of(i) + "' is not bound; bind all of " + input_list());
    if (!posed_ && !Policy::discrete && Policy::num_safe_action == num_actions) {
      float safe[num_actions] = {};
      std::memcpy(safe, Policy::safe_action, sizeof(float) * Policy::num_safe_action);
      targets(safe, pose_);
      posed_ = true;
    }
    if (!posed_) fail("start: there is nothing to do where something is wrong; call fallback() with a pose");
    for (int i = 0; i < num_actions; ++i)
      if (!std::isfinite(static_cast<float>(pose_[i])) || static_cast<float>(pose_[i]) < low_[i] ||
          static_cast<float>(pose_[i]) > high_[i])
        fail("start: number " + std::to_string(i) + " of the fallback pose is outside of the limits; set one within");
    if (options_.max_deviation > 0.0f && Policy::num_observation_std == 0)
      fail("start: the file does not tell how far inputs went in training; set max_deviation to 0");
    reset();
    ready_ = true;
  }

  // An episode begins: history, recurrent state, the latest action and a fault are forgotten.
  void reset() noexcept {
    begin();
    fault_ = Fault::none;
    where_ = -1;
    for (Input& input : inputs_) input.age = input.still = 0;
    for (Input& input : inputs_) input.updated = input.ever = false;
  }

  // The input has been written anew: what max_age counts from.
  void updated(int input) noexcept { inputs_[input].updated = true; }

  // Read the inputs and return num_actions targets (choices where these are discrete), which stay until the next step.
  const Output* step() noexcept {
    const auto before = std::chrono::steady_clock::now();
    const Fault found = ready_ ? watched() : Fault::missing;
    if (fault_ != Fault::none && found == Fault::none && !options_.latch && ready_) {
      fault_ = Fault::none;
      where_ = -1;
    }
    if (fault_ == Fault::none) fault_ = found;
    if (fault_ == Fault::none) fault_ = acted();
    if (fault_ != Fault::none) {
      std::memcpy(output_, pose_, sizeof output_);
      begin();  // now, so that whoever reads the latest action in the next step finds none
      ++faults_;
    }
    const auto time = std::chrono::steady_clock::now() - before;
    timing_.add(static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(time).count()));
    return output_;
  }

  // Why the latest output is the fallback pose, and which input is to blame (-1: none); its name is name_of(blamed()).
  Fault fault() const noexcept { return fault_; }
  int blamed() const noexcept { return where_; }
  std::uint64_t faults() const noexcept { return faults_; }        // steps with the fallback pose
  std::uint64_t cut_off() const noexcept { return cut_off_; }      // targets that were beyond the limits
  bool gate_acted() const noexcept { return policy_.acted(); }     // the latest action is the gate's
  float risk() const noexcept { return policy_.risk; }
  const Timing& timing() const noexcept { return timing_; }
  const float* observation() const noexcept { return obs_; }       // as the policy has read it
  const Output* action() const noexcept { return policy_.actions; }  // as the policy gave it
  // The same as numbers, before the first step 0: for a term that is the latest action, in the file's order.
  Span last_action() const noexcept { return Span(last_, num_actions); }

  std::string name_of(int input) const {
    if (input < 0) return "";
    if (input >= num_terms) return Policy::mask_name;
    return std::string(Policy::observation_terms[input].group) + "/" + Policy::observation_terms[input].name;
  }

 private:
  struct Input {
    const float* data = nullptr;
    Watch watch;
    int age = 0, still = 0;
    bool updated = false, ever = false;
  };

  [[noreturn]] static void fail(const std::string& what) { throw std::invalid_argument(what); }
  static void sized(const char* what, Span values) {
    if (values.data == nullptr || values.size != num_actions)
      fail(std::string(what) + ": the array has " + std::to_string(values.size) + " numbers, and an action " +
           std::to_string(num_actions));
  }
  std::string input_list() const {
    Names names;
    for (int i = 0; i < num_inputs; ++i) names.push_back(name_of(i));
    return listed(names);
  }
  static constexpr int width(int i) noexcept {
    return i < num_terms ? Policy::observation_terms[i].size / Policy::observation_terms[i].history : Policy::mask_size;
  }
  static constexpr int start(int i) noexcept {
    return i < num_terms ? Policy::observation_terms[i].first : Policy::observation_size;
  }
  int find(std::string_view name) const {
    int found = -1;
    for (int i = 0; i < num_inputs; ++i) {
      if (name_of(i) == name) return i;
      if (i == num_terms || name != Policy::observation_terms[i].name) continue;
      if (found >= 0) fail("bind: '" + std::string(name) + "' is in several groups; name one of " + input_list());
      found = i;
    }
    if (found < 0) fail("bind: the policy reads no '" + std::string(name) + "'; it reads " + input_list());
    return found;
  }

  void begin() noexcept {
    policy_.reset();
    fresh_ = true;
    for (float& x : last_) x = 0.0f;
  }

  Fault blame(int input, Fault fault) noexcept {
    where_ = fault_ == Fault::none ? input : where_;
    return fault;
  }

  // What is wrong with the inputs, looking at all of them, so that ages and repetitions are counted on in a fault.
  Fault watched() noexcept {
    Fault found = Fault::none;
    for (int i = 0; i < num_inputs; ++i) {
      Input& input = inputs_[i];
      const int n = width(i);
      float* seen = raw_ + start(i);
      bool same = input.ever;
      for (int k = 0; k < n; ++k) {
        const float* const now = input.data + place_[start(i) + k];
        same = same && std::memcmp(seen + k, now, sizeof(float)) == 0;
        seen[k] = *now;
      }
      input.still = same ? input.still + 1 : 0;
      input.age = input.updated ? 0 : input.age + 1;
      const bool never = input.watch.max_age > 0 && !input.updated && !known_[i];
      known_[i] = known_[i] || input.updated;
      input.updated = false;
      input.ever = true;
      Fault one = Fault::none;
      for (int k = 0; k < n; ++k) {
        if (!std::isfinite(seen[k])) one = Fault::not_finite;
        else if (one == Fault::none && std::fabs(seen[k]) >= input.watch.full_scale) one = Fault::saturated;
      }
      if (one == Fault::none && never) one = Fault::missing;
      if (one == Fault::none && input.watch.max_age > 0 && input.age > input.watch.max_age) one = Fault::stale;
      if (one == Fault::none && input.watch.max_still > 0 && input.still >= input.watch.max_still) one = Fault::stale;
      if (one != Fault::none && found == Fault::none) found = blame(i, one);
    }
    if (found == Fault::none && measured_ != nullptr)
      for (int i = 0; i < num_actions; ++i) {
        const float q = measured_[i], margin = options_.joint_margin;
        if (!(q >= low_[i] - margin && q <= high_[i] + margin)) return Fault::joint_limit;  // NaN, too
      }
    return found;
  }

  // The policy's targets, or what is wrong with them.
  Fault acted() noexcept {
    for (int i = 0; i < num_terms; ++i) {
      const ObservationTerm& term = Policy::observation_terms[i];
      const int n = width(i), kept = term.size - n;
      const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(float);
      float* const oldest = obs_ + term.first;
      for (int from = 0; from < kept; from += n) std::memcpy(oldest + from, oldest + from + n, bytes);
      float* const now = oldest + kept;
      for (int k = 0; k < n; ++k) {
        float x = raw_[term.first + k];
        if (term.low != nullptr) x = x < term.low[k] ? term.low[k] : (x > term.high[k] ? term.high[k] : x);
        now[k] = term.scale != nullptr ? x * term.scale[k] : x;
      }
      for (int from = 0; fresh_ && from < kept; from += n) std::memcpy(oldest + from, now, bytes);
    }
    fresh_ = false;
    for (int i = 0; options_.max_deviation > 0.0f && i < Policy::num_observation_std; ++i) {
      const float limit = options_.max_deviation * (Policy::observation_std[i] + Policy::observation_epsilon);
      if (std::fabs(obs_[i] - Policy::observation_mean[i]) <= limit) continue;
      for (int t = 0; t < num_terms; ++t)
        if (i >= start(t) && i < start(t) + Policy::observation_terms[t].size) where_ = t;
      return Fault::saturated;
    }
    const Output* actions;
    if constexpr (Policy::mask_size > 0) actions = policy_.act(obs_, raw_ + Policy::observation_size);
    else actions = policy_.act(obs_);
    for (int i = 0; i < num_actions; ++i) {
      last_[i] = static_cast<float>(actions[i]);
      if (!std::isfinite(last_[i])) return Fault::broken;
    }
    if constexpr (Policy::discrete) {
      std::memcpy(output_, actions, sizeof output_);
    } else {
      targets(actions, output_);
      for (int i = 0; i < num_actions; ++i) {
        const float wanted = output_[i];
        output_[i] = wanted < low_[i] ? low_[i] : (wanted > high_[i] ? high_[i] : wanted);
        cut_off_ += output_[i] != wanted;
      }
    }
    return Fault::none;
  }

  // From an action of the policy to what the robot is sent: scale, offset, clip, and its own order.
  template <class T>
  void targets(const float* action, T* out) const noexcept {
    for (int i = 0; i < num_actions; ++i) out[joints_.target(i)] = static_cast<T>(action[i]);
    for (int t = 0; t < Policy::num_action_terms; ++t) {
      const ActionTerm& term = Policy::action_terms[t];
      for (int k = 0; k < term.size; ++k) {
        const int i = term.first + k;
        float x = action[i];
        if (term.scale != nullptr) x *= term.scale[k];
        if (term.offset != nullptr) x += term.offset[k];
        if (term.low != nullptr) x = x < term.low[k] ? term.low[k] : (x > term.high[k] ? term.high[k] : x);
        out[joints_.target(i)] = static_cast<T>(x);
      }
    }
  }

  Policy policy_;
  Options options_;
  Timing timing_;
  Joints<Policy> joints_;
  Input inputs_[num_inputs];
  bool known_[num_inputs] = {};
  int place_[Policy::observation_size + Policy::mask_size] = {};  // of each number of an input among what is bound
  float raw_[Policy::observation_size + Policy::mask_size] = {};
  alignas(64) float obs_[Policy::observation_size] = {};
  float low_[num_actions], high_[num_actions], last_[num_actions] = {};
  Output output_[num_actions] = {}, pose_[num_actions] = {};
  const float* measured_ = nullptr;
  bool by_joints_ = false, limited_ = false, posed_ = false, ready_ = false, fresh_ = true;
  Fault fault_ = Fault::none;
  int where_ = -1;
  std::uint64_t faults_ = 0, cut_off_ = 0;
};

}  // namespace rlcore

#endif
