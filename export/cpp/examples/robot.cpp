// A controller in outline: it binds every input that the policy reads to an array of its own, and lets it run for 1,000
// steps. Replace what is marked by your robot's; the rest can stay.

#include <cstdio>
#include <exception>
#include <vector>

#include "policy.hpp"
#include "rlcore_runner.hpp"

using policy::Policy;
using Controller = rlcore::Runner<Policy>;

static Controller controller;

int main() {
  // REPLACE: arrays that the robot's driver writes to, bound by name. What they are is in the file's observation_terms:
  //   controller.joints(std::vector<std::string>{"hip", "knee", ...});       // the robot's order
  //   controller.check_pose(q);                                              // is it that order?
  //   controller.bind_joints("joint_pos", q_minus_default);                  // in that order
  //   controller.bind("actions", controller.last_action());
  std::vector<std::vector<float>> sensors(Controller::num_inputs);
  std::vector<Controller::Output> pose(Policy::action_size);  // REPLACE: where the robot can rest
  try {
    for (int i = 0; i < Controller::num_inputs; ++i) {
      const bool mask = i == Controller::num_terms;
      const int width = mask ? Policy::mask_size
                             : Policy::observation_terms[i].size / Policy::observation_terms[i].history;
      sensors[i].assign(width, mask ? 1.0f : 0.0f);
      const int bound = controller.bind(controller.name_of(i), sensors[i]);
      std::printf("input %d: %s, %d numbers\n", bound, controller.name_of(i).c_str(), width);
    }
    // REPLACE: controller.limits(low, high), the robot's own.
    controller.fallback(pose.data(), Policy::action_size);
    controller.start();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  for (int t = 0; t < 1000; ++t) {
    // REPLACE: wait for the control period (Policy::control_dt seconds where it is known), read the sensors.
    const Controller::Output* targets = controller.step();
    // REPLACE: send the targets.
    for (int i = 0; t == 999 && i < Policy::action_size; ++i)
      std::printf("%s%g", i ? ", " : "targets ", static_cast<double>(targets[i]));
    if (controller.fault() != rlcore::Fault::none) {
      std::printf("fault: %s %s\n", rlcore::text(controller.fault()), controller.name_of(controller.blamed()).c_str());
      return 1;
    }
  }
  const rlcore::Timing& timing = controller.timing();
  std::printf("\nstep: half within %.2f us, 99 %% within %.2f us, most %.2f us\n", 1e6 * timing.percentile(0.5),
              1e6 * timing.percentile(0.99), 1e6 * timing.most());
  return 0;
}
