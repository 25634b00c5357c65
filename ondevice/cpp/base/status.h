// Results of operations that may fail: a code, and a message for people. The library throws no exceptions of its own.
#ifndef SEARCHFORGE_STATUS_H_
#define SEARCHFORGE_STATUS_H_

#include <optional>
#include <string>
#include <utility>

namespace searchforge {

// The values are those of `sf_status` in searchforge_reader.h.
enum class StatusCode {
  kOk = 0,
  kInvalidArgument = 1,  // the caller's mistake
  kDamaged = 2,          // the file contradicts its format
  kUnsupported = 3,      // a valid file that needs what this library lacks
  kIo = 4,               // the system could not read the file
  kOutOfMemory = 5,
};

// Success, or the reason of a failure. Only a failure allocates memory.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  // States the value found, what was expected and what to do.
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status InvalidArgument(std::string message) { return {StatusCode::kInvalidArgument, std::move(message)}; }
inline Status Damaged(std::string message) { return {StatusCode::kDamaged, std::move(message)}; }
inline Status Unsupported(std::string message) { return {StatusCode::kUnsupported, std::move(message)}; }
inline Status IoError(std::string message) { return {StatusCode::kIo, std::move(message)}; }

// A value, or the reason why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}           // NOLINT: `return value;`
  Result(Status status) : status_(std::move(status)) {}   // NOLINT: `return status;`; never an OK status

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  // Requires ok().
  T& value() { return *value_; }
  const T& value() const { return *value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace searchforge

// Returns from the calling function if `expression`, a Status, is a failure.
#define SF_RETURN_IF_ERROR(expression)                                  \
  do {                                                                  \
    if (::searchforge::Status sf_status_ = (expression); !sf_status_.ok()) return sf_status_; \
  } while (false)

#define SF_JOIN_INNER(a, b) a##b
#define SF_JOIN(a, b) SF_JOIN_INNER(a, b)

// Assigns the value of `expression`, a Result, to `target`, or returns its failure from the calling function.
#define SF_ASSIGN_OR_RETURN(target, expression) SF_ASSIGN_OR_RETURN_INNER(SF_JOIN(sf_result_, __LINE__), target, expression)
#define SF_ASSIGN_OR_RETURN_INNER(result, target, expression) \
  auto result = (expression);                                 \
  if (!result.ok()) return result.status();                   \
  target = std::move(result.value())

#endif  // SEARCHFORGE_STATUS_H_
