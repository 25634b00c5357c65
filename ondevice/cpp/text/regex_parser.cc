// Compiles regular expressions by recursive descent.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "text/regex.h"
#include "base/utf8.h"

namespace searchforge {
namespace {

using Program = std::vector<RegexInstruction>;
using Kind = RegexInstruction::Kind;

constexpr size_t kMaxInstructions = 2000;
constexpr int kMaxDepth = 50;  // of groups
constexpr uint32_t kMaxRepetitions = 1000;

// A compiled part of an expression.
struct Part {
  Program program;
  bool may_be_empty;
};

// How often a part is repeated. Without `most`, there is no limit.
struct Repetition {
  uint32_t least;
  std::optional<uint32_t> most;
};

int32_t Distance(size_t instructions) { return static_cast<int32_t>(instructions); }

void Append(const Program& added, Program* program) { program->insert(program->end(), added.begin(), added.end()); }

RegexInstruction Fork(int32_t into, int32_t past, bool lazy) {
  return {Kind::kFork, 0, lazy ? past : into, lazy ? into : past};
}

class Parser {
 public:
  explicit Parser(std::string_view pattern) : pattern_(pattern), rest_(pattern) {}

  Result<Regex> Parse() {
    Part part;
    SF_ASSIGN_OR_RETURN(part, Alternatives(0));
    if (!rest_.empty()) return Invalid("an unexpected ')'");
    if (part.may_be_empty) return Refused("a match of the empty string");
    part.program.push_back({Kind::kMatch, 0, 0, 0});
    return Regex{std::move(part.program), std::move(classes_)};
  }

 private:
  Status Invalid(const char* what) const {
    return InvalidArgument("the regular expression '" + std::string(pattern_.substr(0, 200)) + "' has " + what +
                           " before its last " + std::to_string(rest_.size()) + " bytes; correct it");
  }

  Status Refused(const char* what) const {
    return Unsupported("the regular expression '" + std::string(pattern_.substr(0, 200)) + "' has " + what + " before its last " +
                       std::to_string(rest_.size()) + " bytes, which this library does not support; use simpler parts");
  }

  bool Skip(std::string_view expected) {
    if (rest_.substr(0, expected.size()) != expected) return false;
    rest_.remove_prefix(expected.size());
    return true;
  }

  Result<uint32_t> TakeCharacter() {
    if (rest_.empty()) return Invalid("an unexpected end");
    const Character character = FirstCharacter(rest_);
    if (character.code == Character::kInvalid) return Invalid("bytes that are not UTF-8");
    rest_.remove_prefix(character.length);
    return character.code;
  }

  Result<Part> Alternatives(int depth) {
    Part all;
    SF_ASSIGN_OR_RETURN(all, Sequence(depth));
    while (Skip("|")) {
      Part next;
      SF_ASSIGN_OR_RETURN(next, Sequence(depth));
      const size_t first = all.program.size(), second = next.program.size();
      if (first + second > kMaxInstructions) return Refused("too many parts");
      all.program.insert(all.program.begin(), Fork(1, Distance(first + 2), false));
      all.program.push_back({Kind::kJump, 0, Distance(second + 1), 0});
      Append(next.program, &all.program);
      all.may_be_empty |= next.may_be_empty;
    }
    return all;
  }

  Result<Part> Sequence(int depth) {
    Part all{{}, true};
    while (!rest_.empty() && rest_[0] != '|' && rest_[0] != ')') {
      Part next;
      SF_ASSIGN_OR_RETURN(next, Item(depth));
      if (all.program.size() + next.program.size() > kMaxInstructions) return Refused("too many parts");
      Append(next.program, &all.program);
      all.may_be_empty &= next.may_be_empty;
    }
    return all;
  }

  // Takes a character, a class or a group, with the repetition behind it.
  Result<Part> Item(int depth) {
    Part part;
    SF_ASSIGN_OR_RETURN(part, Atom(depth));
    const std::optional<Repetition> repetition = TakeRepetition();
    if (!repetition) return part;
    const bool lazy = Skip("?");
    if (TakeRepetition()) return Invalid("a repetition of a repetition");
    if (part.may_be_empty) return Refused("a repetition of what may be empty");
    return Repeated(part, *repetition, lazy);
  }

  Result<Part> Repeated(const Part& part, const Repetition& repetition, bool lazy) {
    const uint32_t least = repetition.least, most = repetition.most.value_or(least);
    if (most < least || most > kMaxRepetitions) return Invalid("a repetition of impossible counts");
    const size_t size = part.program.size();
    if ((size + 1) * (size_t{std::max(most, 1u)} + 1) > kMaxInstructions) return Refused("too many parts");
    Part all{{}, least == 0};
    for (uint32_t i = 0; i < least; ++i) Append(part.program, &all.program);
    if (!repetition.most) {
      all.program.push_back(Fork(1, Distance(size + 2), lazy));
      Append(part.program, &all.program);
      all.program.push_back({Kind::kJump, 0, -Distance(size + 1), 0});
      return all;
    }
    for (uint32_t i = least; i < most; ++i) {
      all.program.push_back(Fork(1, Distance((most - i) * (size + 1)), lazy));
      Append(part.program, &all.program);
    }
    return all;
  }

  std::optional<Repetition> TakeRepetition() {
    if (Skip("*")) return Repetition{0, {}};
    if (Skip("+")) return Repetition{1, {}};
    if (Skip("?")) return Repetition{0, 1};
    const std::string_view before = rest_;
    if (Skip("{")) {
      const std::optional<uint32_t> least = TakeCount();
      if (least && Skip("}")) return Repetition{*least, *least};
      if (least && Skip(",}")) return Repetition{*least, {}};
      if (least && Skip(",")) {
        const std::optional<uint32_t> most = TakeCount();
        if (most && Skip("}")) return Repetition{*least, *most};
      }
    }
    rest_ = before;  // a brace that begins no repetition is a character
    return {};
  }

  std::optional<uint32_t> TakeCount() {
    uint32_t count = 0;
    const size_t before = rest_.size();
    for (; !rest_.empty() && rest_[0] >= '0' && rest_[0] <= '9'; rest_.remove_prefix(1)) {
      count = std::min(10 * count + static_cast<uint32_t>(rest_[0] - '0'), kMaxRepetitions + 1);
    }
    if (rest_.size() == before) return {};
    return count;
  }

  Result<Part> Atom(int depth) {
    if (TakeRepetition()) return Invalid("a repetition of nothing");
    if (Skip("(")) return Group(depth + 1);
    if (Skip("[")) return Class();
    if (Skip(".")) return OneOf(Negated({{'\n', '\n'}}));
    if (rest_[0] == '^' || rest_[0] == '$') return Refused("'^' or '$'");
    if (rest_[0] == '\\') {
      CharacterClass escaped;
      SF_ASSIGN_OR_RETURN(escaped, Escape());
      return OneOf(std::move(escaped));
    }
    uint32_t code;
    SF_ASSIGN_OR_RETURN(code, TakeCharacter());
    return OneOf({{code, code}});
  }

  Part OneOf(CharacterClass characters) {
    classes_.push_back(std::move(characters));
    return {{{Kind::kClass, static_cast<uint32_t>(classes_.size() - 1), 0, 0}}, false};
  }

  Result<Part> Group(int depth) {
    if (depth > kMaxDepth) return Refused("too many groups in each other");
    if (!Skip("?:") && Skip("?")) return Refused("a flag or a name of a group");
    Part part;
    SF_ASSIGN_OR_RETURN(part, Alternatives(depth));
    if (!Skip(")")) return Invalid("a group without ')'");
    return part;
  }

  // Takes the rest of a class in brackets.
  Result<Part> Class() {
    const bool negated = Skip("^");
    CharacterClass all;
    for (bool first = true; first || !Skip("]"); first = false) {
      if (rest_.substr(0, 2) == "[:") return Refused("a named class");
      CharacterClass next;
      SF_ASSIGN_OR_RETURN(next, ClassItem());
      const bool single = next.size() == 1 && next[0].first == next[0].last;
      if (single && rest_.size() > 1 && rest_[0] == '-' && rest_[1] != ']') {
        rest_.remove_prefix(1);
        CharacterClass last;
        SF_ASSIGN_OR_RETURN(last, ClassItem());
        if (last.size() != 1 || last[0].first != last[0].last || last[0].first < next[0].first) {
          return Invalid("a range of characters without an order");
        }
        next[0].last = last[0].last;
      }
      all.insert(all.end(), next.begin(), next.end());
    }
    all = Merged(std::move(all));
    return OneOf(negated ? Negated(all) : std::move(all));
  }

  Result<CharacterClass> ClassItem() {
    if (!rest_.empty() && rest_[0] == '\\') return Escape();
    uint32_t code;
    SF_ASSIGN_OR_RETURN(code, TakeCharacter());
    return CharacterClass{{code, code}};
  }

  // Takes a backslash and what it makes of the next characters.
  Result<CharacterClass> Escape() {
    rest_.remove_prefix(1);
    uint32_t code;
    SF_ASSIGN_OR_RETURN(code, TakeCharacter());
    switch (code) {
      case 'd': return Digits();
      case 'D': return Negated(Digits());
      case 'w': return WordCharacters();
      case 'W': return Negated(WordCharacters());
      case 's': return Blanks();
      case 'S': return Negated(Blanks());
      case 'a': return CharacterClass{{'\a', '\a'}};
      case 'f': return CharacterClass{{'\f', '\f'}};
      case 'n': return CharacterClass{{'\n', '\n'}};
      case 'r': return CharacterClass{{'\r', '\r'}};
      case 't': return CharacterClass{{'\t', '\t'}};
      case 'v': return CharacterClass{{'\v', '\v'}};
      case 'x': return Hexadecimal();
      default: break;
    }
    const bool letter = (code | 32) >= 'a' && (code | 32) <= 'z';
    if (code >= 0x80 || letter || code == '_' || (code >= '0' && code <= '9')) return Refused("an escape");
    return CharacterClass{{code, code}};
  }

  // Takes two hexadecimal digits, or any number of them in braces.
  Result<CharacterClass> Hexadecimal() {
    const bool braces = Skip("{");
    uint32_t code = 0;
    size_t digits = 0;
    for (; !rest_.empty() && (braces || digits < 2); ++digits, rest_.remove_prefix(1)) {
      const char digit = rest_[0];
      const char lower = static_cast<char>(digit | 32);
      if (digit >= '0' && digit <= '9') {
        code = 16 * code + static_cast<uint32_t>(digit - '0');
      } else if (lower >= 'a' && lower <= 'f') {
        code = 16 * code + static_cast<uint32_t>(lower - 'a') + 10;
      } else {
        break;
      }
      if (code > kLastCodePoint) return Invalid("a code point above U+10FFFF");
    }
    if (digits == 0 || (braces ? !Skip("}") : digits < 2)) return Invalid("an incomplete \\x");
    return CharacterClass{{code, code}};
  }

  const std::string_view pattern_;
  std::string_view rest_;
  std::vector<CharacterClass> classes_;
};

}  // namespace

Result<Regex> CompileRegex(std::string_view pattern) { return Parser(pattern).Parse(); }

}  // namespace searchforge
