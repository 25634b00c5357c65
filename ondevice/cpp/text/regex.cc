// Searches for matches by running all ways through the automaton at once, one character at a time.
#include "text/regex.h"

#include "base/utf8.h"

namespace searchforge {
void RegexSearch::Add(const Regex& regex, Thread thread, std::vector<Thread>* threads) {
  using Kind = RegexInstruction::Kind;
  pending_.assign(1, thread.instruction);
  while (!pending_.empty()) {
    const size_t number = pending_.back();
    pending_.pop_back();
    if (added_[number] == step_) continue;
    added_[number] = step_;
    const RegexInstruction& instruction = regex.program[number];
    if (instruction.kind == Kind::kFork) pending_.push_back(number + static_cast<size_t>(instruction.other));
    if (instruction.kind == Kind::kFork || instruction.kind == Kind::kJump) {
      pending_.push_back(number + static_cast<size_t>(instruction.preferred));
    } else {
      threads->push_back({number, thread.start});
    }
  }
}

bool RegexSearch::Find(const Regex& regex, std::string_view text, size_t from, RegexMatch* match) {
  bool found = false;
  current_.clear();
  current_.reserve(regex.program.size());
  next_.reserve(regex.program.size());
  added_.assign(regex.program.size(), 0);
  step_ = 1;
  for (size_t position = from;;) {
    if (!found) Add(regex, {0, position}, &current_);
    const bool end = position >= text.size();
    const Character character = end ? Character{Character::kInvalid, 0} : FirstCharacter(text.substr(position));
    next_.clear();
    ++step_;
    for (const Thread& thread : current_) {
      const RegexInstruction& instruction = regex.program[thread.instruction];
      if (instruction.kind == RegexInstruction::Kind::kMatch) {
        *match = {thread.start, position};
        found = true;
        break;  // the threads behind are less preferred
      }
      if (Contains(regex.classes[instruction.character_class], character.code)) {
        Add(regex, {thread.instruction + 1, thread.start}, &next_);
      }
    }
    current_.swap(next_);
    if (end || (found && current_.empty())) return found;
    position += character.length;
  }
}

}  // namespace searchforge
