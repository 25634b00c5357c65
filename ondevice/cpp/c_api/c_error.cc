// Keeps the message of each thread's last failure.
#include "c_api/c_error.h"

#include <cstdio>

namespace searchforge {
namespace {

constexpr char kOutOfMemory[] = "there is not enough memory; close other indexes, or open a smaller one";

// Of a fixed size, so that a failure can be reported when memory is exhausted.
thread_local char last_message[1024] = "";

}  // namespace

sf_status Report(const Status& status) noexcept {
  if (status.ok()) return SF_OK;
  const bool exhausted = status.code() == StatusCode::kOutOfMemory;
  std::snprintf(last_message, sizeof(last_message), "%s", exhausted ? kOutOfMemory : status.message().c_str());
  return static_cast<sf_status>(status.code());
}

}  // namespace searchforge

extern "C" const char* sf_error_message(void) { return searchforge::last_message; }
