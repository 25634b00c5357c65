// Translates results and exceptions into the values of the C interface, and keeps each thread's last message.
#ifndef SEARCHFORGE_C_ERROR_H_
#define SEARCHFORGE_C_ERROR_H_

#include "searchforge_reader.h"
#include "base/status.h"

namespace searchforge {

// Keeps the message of a failure for sf_error_message and returns its code.
sf_status Report(const Status& status) noexcept;

// Runs `call`, a function of no arguments that returns a Status, for the C interface: no exception leaves it.
template <typename Call>
sf_status Guarded(Call call) noexcept {
  try {
    return Report(call());
  } catch (...) {  // the standard containers throw only when memory is exhausted
    return Report({StatusCode::kOutOfMemory, {}});
  }
}

}  // namespace searchforge

#endif  // SEARCHFORGE_C_ERROR_H_
