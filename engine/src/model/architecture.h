// What a file in architectures/ defines, one object named like the file: `const Architecture olmo2`. The build gathers them.
#pragma once

#include <string_view>
#include <vector>

#include "model.h"
#include "reader.h"

namespace millrace {

struct Architecture {
  std::vector<std::string_view> names;  // as `general.architecture` has them
  // Fills in what `model`, whose config is read, lacks. What is wrong goes to `read`.
  void (*read)(ModelReader& read, Model& model);
};

// All of them, in the order of their files' names; written by the build.
std::vector<const Architecture*> architectures();

}  // namespace millrace
