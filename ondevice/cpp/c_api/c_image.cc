// The C interface of image preprocessing.
#include <algorithm>
#include <vector>

#include "c_api/c_error.h"
#include "image/preprocessing.h"
#include "image/resize.h"
#include "searchforge_reader.h"

namespace {

using searchforge::Filter;
using searchforge::Guarded;
using searchforge::Image;
using searchforge::InvalidArgument;
using searchforge::kMaxInputSide;
using searchforge::Preprocessing;
using searchforge::Result;
using searchforge::Status;

// Checks what the caller may have written.
Result<Preprocessing> Checked(const sf_preprocessing& given) {
  if (std::min(given.height, given.width) == 0 || std::max(given.height, given.width) > kMaxInputSide ||
      (given.filter != SF_FILTER_BILINEAR && given.filter != SF_FILTER_BICUBIC)) {
    return InvalidArgument("the preprocessing has no valid size or filter; fill it in with sf_parse_preprocessing");
  }
  Preprocessing checked{given.height, given.width, static_cast<Filter>(given.filter), {}, {}};
  std::copy_n(given.mean, 3, checked.mean.begin());
  std::copy_n(given.std, 3, checked.std.begin());
  return checked;
}

}  // namespace

sf_status sf_parse_preprocessing(const char* text, sf_preprocessing* preprocessing) {
  return Guarded([=]() -> Status {
    Preprocessing parsed;
    SF_ASSIGN_OR_RETURN(parsed, searchforge::ParsePreprocessing(text));
    preprocessing->height = parsed.height;
    preprocessing->width = parsed.width;
    preprocessing->filter = static_cast<uint32_t>(parsed.filter);
    std::copy_n(parsed.mean.begin(), 3, preprocessing->mean);
    std::copy_n(parsed.std.begin(), 3, preprocessing->std);
    return {};
  });
}

sf_status sf_resize_image(const sf_preprocessing* preprocessing, const uint8_t* pixels, uint32_t width, uint32_t height,
                          size_t stride, uint8_t* resized) {
  return Guarded([=]() -> Status {
    Preprocessing checked;
    SF_ASSIGN_OR_RETURN(checked, Checked(*preprocessing));
    return searchforge::Resize(Image{pixels, width, height, stride}, checked, resized);
  });
}

sf_status sf_preprocess_image(const sf_preprocessing* preprocessing, const uint8_t* pixels, uint32_t width, uint32_t height,
                              size_t stride, float* tensor) {
  return Guarded([=]() -> Status {
    Preprocessing checked;
    SF_ASSIGN_OR_RETURN(checked, Checked(*preprocessing));
    std::vector<uint8_t> resized(size_t{3} * checked.height * checked.width);
    SF_RETURN_IF_ERROR(searchforge::Resize(Image{pixels, width, height, stride}, checked, resized.data()));
    searchforge::Scale(checked, resized.data(), tensor);
    return {};
  });
}
