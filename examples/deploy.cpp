// Deployment in C++: the flight of deploy.py without ONNX Runtime, by the source that rlcore writes for a policy.
//
//     rlcore train --config examples/hover.yaml --name first
//     rlcore export --run runs/*/ppo/*-first --cpp controller
//     g++ -std=c++17 -O3 -Icontroller examples/deploy.cpp -o hover && ./hover
//
// It prints the height twice a second, as deploy.py does, and the time of a step. Inputs are bound by name; a name that
// the policy does not have, an array of another length and an input that nobody bound are refused before the first step.

#include <cstdio>
#include <exception>

#include "policy.hpp"
#include "rlcore_runner.hpp"

static rlcore::Runner<policy::Policy> controller;

int main() {
  constexpr float goal = 3.0f, gravity = 9.81f, dt = 0.05f;        // m, m/s^2, s
  float error[1] = {1.0f}, velocity[1] = {0.0f}, height[1] = {2.0f};  // what a driver writes to
  const float carry[1] = {gravity};                                // thrust in N, taken where a sensor fails
  try {
    controller.bind("error", error);
    controller.bind("velocity", velocity);
    controller.bind("height", height);
    controller.fallback(carry);
    controller.start();
  } catch (const std::exception& wrong) {
    std::fprintf(stderr, "%s\n", wrong.what());
    return 2;
  }
  for (int tick = 1; tick <= 100; ++tick) {
    const float thrust = controller.step()[0];  // N; scale and offset are applied
    if (controller.fault() != rlcore::Fault::none) {
      std::printf("fault: %s\n", rlcore::text(controller.fault()));
      return 1;
    }
    velocity[0] += dt * (thrust - gravity - 0.5f * velocity[0]);  // a drone of 1 kg
    height[0] += dt * velocity[0];
    error[0] = goal - height[0];
    if (tick % 10 == 0) std::printf("%4.1f s  %.2f m\n", tick * dt, static_cast<double>(height[0]));
  }
  std::printf("half of the steps took less than %.2f us\n", 1e6 * controller.timing().percentile(0.5));
  return 0;
}
