// Joints by name: those that a policy knows, in the order in which a robot has them.

#ifndef RLCORE_JOINTS_HPP
#define RLCORE_JOINTS_HPP

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "rlcore_policy.hpp"

namespace rlcore {

using Names = std::vector<std::string>;

// The place of a name; -1: it is not there.
inline int place_of(std::string_view name, const Names& names) noexcept {
  for (std::size_t i = 0; i < names.size(); ++i)
    if (names[i] == name) return static_cast<int>(i);
  return -1;
}

inline std::string listed(const Names& names) {
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
  return all;
}

template <class Policy>
class Joints {
 public:
  Joints() noexcept {
    for (int i = 0; i < Policy::action_size; ++i) target_[i] = joint_[i] = i;
  }

  // The robot's joints in its own order, all that are driven among them.
  template <class Given>
  void name(const Given& given) {
    const Names driven(Policy::joint_names, Policy::joint_names + Policy::num_joint_names);
    Names known = driven, own;
    for (int j = 0; j < Policy::num_joints; ++j)
      if (place_of(Policy::joints[j].name, known) < 0) known.push_back(Policy::joints[j].name);
    if (known.empty()) fail("the policy file names no joints; give arrays in its own order");
    for (const auto& entry : given) {
      const std::string joint(entry);
      if (place_of(joint, known) < 0) fail("'" + joint + "' is no joint of the policy's, which are " + listed(known));
      if (place_of(joint, own) >= 0) fail("'" + joint + "' comes twice; name each joint once");
      own.push_back(joint);
    }
    for (const std::string& joint : driven)
      if (place_of(joint, own) < 0) fail("'" + joint + "' is missing; name all of " + listed(driven));
    int count = 0;
    for (std::size_t i = 0; i < own.size(); ++i)
      for (std::size_t a = 0; a < driven.size(); ++a)
        if (driven[a] == own[i]) {
          joint_[count] = static_cast<int>(i);
          target_[a] = count++;
        }
    names_ = own;
  }

  const Names& names() const noexcept { return names_; }
  int target(int action) const noexcept { return target_[action]; }  // the place of an action among the targets
  int joint(int target) const noexcept { return joint_[target]; }    // the place of a target among the robot's joints

  // Refuse positions that the joints cannot have: most often the order is not the one that was told.
  void check(const float* measured) const {
    for (const Joint& joint : Policy::joints) {
      const int i = joint.name == nullptr ? -1 : place_of(joint.name, names_);
      if (i < 0) continue;
      const float margin = std::string_view(joint.unit) == "m" ? 0.005f : 0.1f;
      if (!(measured[i] >= joint.low - margin && measured[i] <= joint.high + margin))
        fail("'" + names_[static_cast<std::size_t>(i)] + "' is at " + std::to_string(measured[i]) + ", outside of " +
             std::to_string(joint.low) + ".." + std::to_string(joint.high) + "; is the order right?");
    }
  }

 private:
  [[noreturn]] static void fail(const std::string& what) { throw std::invalid_argument("joints: " + what); }

  Names names_;
  int target_[Policy::action_size], joint_[Policy::action_size];
};

}  // namespace rlcore

#endif
