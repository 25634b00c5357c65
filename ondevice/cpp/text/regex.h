// Regular expressions that are searched in linear time, with the syntax and the matches of RE2: of the leftmost matches, the one
// that a backtracking matcher would prefer.
#ifndef SEARCHFORGE_REGEX_H_
#define SEARCHFORGE_REGEX_H_

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "text/character_class.h"
#include "base/status.h"

namespace searchforge {

// An instruction of the nondeterministic automaton that an expression is compiled to (Pike's virtual machine; Cox, "Regular
// Expression Matching: the Virtual Machine Approach", 2009). Jumps are relative to the instruction.
struct RegexInstruction {
  enum class Kind : uint8_t { kClass, kFork, kJump, kMatch };

  Kind kind;
  uint32_t character_class;  // kClass: the number of the class that the next character must be in
  int32_t preferred, other;  // kFork: where to go on, the preferred way first; kJump: `preferred` only
};

struct Regex {
  std::vector<RegexInstruction> program;
  std::vector<CharacterClass> classes;
};

// Compiles an expression: literals, classes, escapes, groups, alternatives and repetitions. Those that match the empty string are
// refused, and so are assertions (^, $, \b), Unicode classes (\p), flags, and repetitions of what may be empty.
Result<Regex> CompileRegex(std::string_view pattern);

struct RegexMatch {
  size_t start, end;  // offsets in the text
};

// Memory of a search. Searches of one thread may share it.
class RegexSearch {
 public:
  // Finds the first match at or behind the offset `from`. Returns false if there is none. Text that is not UTF-8 matches nothing.
  bool Find(const Regex& regex, std::string_view text, size_t from, RegexMatch* match);

 private:
  struct Thread {
    size_t instruction;
    size_t start;  // of the match
  };

  // Adds the threads that `thread` becomes without reading a character, in the order of preference.
  void Add(const Regex& regex, Thread thread, std::vector<Thread>* threads);

  std::vector<Thread> current_, next_;
  std::vector<size_t> pending_;
  std::vector<uint64_t> added_;  // of each instruction: the step at which it was last added
  uint64_t step_ = 0;
};

}  // namespace searchforge

#endif  // SEARCHFORGE_REGEX_H_
