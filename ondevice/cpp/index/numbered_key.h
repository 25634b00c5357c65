// Keys of the table that end with a number, such as E_17 and M_4711, made without allocation.
#ifndef SEARCHFORGE_NUMBERED_KEY_H_
#define SEARCHFORGE_NUMBERED_KEY_H_

#include <charconv>
#include <cstdint>
#include <string_view>

namespace searchforge {

class NumberedKey {
 public:
  // `prefix` has two characters.
  NumberedKey(const char* prefix, uint32_t number) : text_{prefix[0], prefix[1]} {
    end_ = std::to_chars(text_ + 2, text_ + sizeof(text_), number).ptr;
  }

  // Valid as long as this object.
  std::string_view text() const { return {text_, static_cast<size_t>(end_ - text_)}; }

 private:
  char text_[16];
  char* end_;
};

}  // namespace searchforge

#endif  // SEARCHFORGE_NUMBERED_KEY_H_
