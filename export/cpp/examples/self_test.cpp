// Replays the steps that the exporter recorded, and compares: exit code 0 where the policy does as its ONNX file.
//
//   ./self_test [largest difference, 1e-5]

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "policy.hpp"
#include "policy_trace.hpp"

int main(int argc, char** argv) {
  using policy::Policy;
  const double tolerance = argc > 1 ? std::atof(argv[1]) : 1e-5;
  static Policy controller;
  double worst = 0.0, worst_risk = 0.0;
  int next_reset = 0;
  const int num_resets = static_cast<int>(sizeof policy_trace::resets / sizeof *policy_trace::resets);
  for (int t = 0; t < policy_trace::num_steps; ++t) {
    if (next_reset < num_resets && policy_trace::resets[next_reset] == t) {
      controller.reset();
      ++next_reset;
    }
    const float* obs = policy_trace::obs + t * Policy::observation_size;
#if RLCORE_TRACE_MASK
    const Policy::Action* actions = controller.act(obs, policy_trace::mask + t * Policy::mask_size);
#else
    const Policy::Action* actions = controller.act(obs);
#endif
    for (int i = 0; i < Policy::action_size; ++i) {
      const double wanted = policy_trace::actions[t * Policy::action_size + i];
      const double difference = std::fabs(static_cast<double>(actions[i]) - wanted) / std::fmax(1.0, std::fabs(wanted));
      if (!(difference <= worst)) worst = difference;  // NaN, too
    }
#if RLCORE_TRACE_RISK
    const double difference = std::fabs(controller.risk - policy_trace::risk[t]);
    if (!(difference <= worst_risk)) worst_risk = difference;
#endif
  }
  const bool passed = worst <= tolerance && worst_risk <= tolerance;
  const char* verdict = passed ? "passed" : "FAILED";
  std::printf("%s: %d steps, largest difference of an action %.3g", verdict, policy_trace::num_steps, worst);
  if (Policy::gated) std::printf(", of the risk %.3g", worst_risk);
  std::printf(" (limit %g)\n", tolerance);
  return passed ? 0 : 1;
}
