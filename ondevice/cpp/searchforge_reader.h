/* C interface of the reader: opens the files of a release and searches them. C99 and C++17. */
#ifndef SEARCHFORGE_READER_H_
#define SEARCHFORGE_READER_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define SF_API __declspec(dllexport)
#else
#define SF_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* How a call ended. Of a call that did not end with SF_OK, no output argument is written. */
typedef enum sf_status {
  SF_OK = 0,
  SF_INVALID_ARGUMENT = 1, /* the caller's mistake */
  SF_DAMAGED = 2,          /* the file contradicts its format */
  SF_UNSUPPORTED = 3,      /* a valid file that needs what this library lacks */
  SF_IO = 4,               /* the system could not read the file */
  SF_OUT_OF_MEMORY = 5
} sf_status;

/* Returns the message of the last call that failed on this thread: the value found, what was expected and what to do. UTF-8,
 * valid until the next call that fails on this thread. */
SF_API const char* sf_error_message(void);

/* An open index. All functions except sf_close may be called on it from several threads at once. */
typedef struct sf_index sf_index;

/* Opens a searcher (text_searcher.tflite, image_searcher.tflite) or an index (.ldb). The file must not be truncated while it is
 * open; replace it by renaming another file. */
SF_API sf_status sf_open_path(const char* path, sf_index** index);

/* Opens a part of an open file, as Android's AssetFileDescriptor describes one. The caller may close the descriptor afterwards. */
SF_API sf_status sf_open_descriptor(int descriptor, uint64_t offset, uint64_t length, sf_index** index);

/* Opens a file in memory, which must stay unchanged until sf_close. */
SF_API sf_status sf_open_memory(const void* data, size_t size, sf_index** index);

/* Copies `length` bytes of a file from `offset` on to `target`. Returns 0, or any other number if they cannot be read. It is
 * called from every thread that uses the index. */
typedef int (*sf_read_function)(void* context, uint64_t offset, size_t length, void* target);

/* Opens a file of `size` bytes that `read` reads. */
SF_API sf_status sf_open_callback(sf_read_function read, void* context, uint64_t size, sf_index** index);

/* Closes an index, which no other thread may be using. NULL is allowed. */
SF_API void sf_close(sf_index* index);

typedef enum sf_lookup_type { SF_LOOKUP_FLOAT = 0, SF_LOOKUP_INT16 = 1, SF_LOOKUP_INT8 = 2 } sf_lookup_type;

typedef struct sf_shape {
  uint32_t items;
  uint32_t dim;                 /* of a query */
  uint32_t partitions;
  uint32_t partitions_searched; /* by a query that does not say how many */
  uint32_t code_bytes;          /* of an item */
  uint32_t lookup_type;         /* sf_lookup_type */
} sf_shape;

SF_API sf_shape sf_get_shape(const sf_index* index);

/* Returns the text that the indexer stored, JSON of `*length` bytes; valid until sf_close. */
SF_API const char* sf_user_info(const sf_index* index, size_t* length);

/* A result. */
typedef struct sf_hit {
  float score;   /* dot product of query and item as the index approximates it; the Task Library's distance, negated */
  uint32_t item; /* number of the item in the index */
} sf_hit;

/* Finds the `k` items with the highest scores, best first.
 *
 * query: [dim] floats, the output of the searcher's encoder.
 * partitions: how many of the nearest partitions are searched; 0 for the index's own number.
 * hits: room for `k` results. `*found` receives their number, less than `k` if the partitions hold fewer items.
 */
SF_API sf_status sf_search(const sf_index* index, const float* query, size_t dim, size_t k, uint32_t partitions, sf_hit* hits,
                           size_t* found);

/* Copies the metadata of an item, at most `capacity` bytes, to `target`. `*length` receives the length of all of it. */
SF_API sf_status sf_metadata(const sf_index* index, uint32_t item, void* target, size_t capacity, size_t* length);

/* Reads the whole index and verifies every checksum, every code, and that every item has metadata. */
SF_API sf_status sf_verify(const sf_index* index);

/* Number of files inside the searcher without its index, such as the tokenizer's vocabulary. 0 for an .ldb file. */
SF_API size_t sf_file_count(const sf_index* index);

/* Returns the name of a file inside the searcher, valid until sf_close, and its size; NULL if there are fewer files. */
SF_API const char* sf_file_name(const sf_index* index, size_t number, uint64_t* size);

/* Copies `length` bytes of a file inside the searcher from `offset` on to `target`. */
SF_API sf_status sf_read_file(const sf_index* index, size_t number, uint64_t offset, size_t length, void* target);

/* A tokenizer: from a text to the input tensors of a text encoder. sf_tokenize may be called on it from several threads at once. */
typedef struct sf_tokenizer sf_tokenizer;

/* Makes the tokenizer of a searcher's encoder. SF_UNSUPPORTED if it has none, or one that this library lacks. The index may be closed
 * before the tokenizer is. */
SF_API sf_status sf_open_tokenizer(const sf_index* index, sf_tokenizer** tokenizer);

/* Makes the Task Library's BertTokenizer of a vocabulary, the `size` bytes of the model's vocab.txt, which are copied. */
SF_API sf_status sf_open_bert_tokenizer(const void* vocabulary, size_t size, sf_tokenizer** tokenizer);

/* Makes the Task Library's RegexTokenizer of a regular expression for what is between tokens, and a vocabulary whose lines have a
 * word and its id. Expressions are those of RE2 that match no empty string, without assertions, flags and Unicode classes. */
SF_API sf_status sf_open_regex_tokenizer(const char* pattern, const void* vocabulary, size_t size, sf_tokenizer** tokenizer);

/* Closes a tokenizer, which no other thread may be using. NULL is allowed. */
SF_API void sf_close_tokenizer(sf_tokenizer* tokenizer);

/* Tokenizes the `size` bytes of a text, which should be UTF-8. What does not fit into the tensors is cut off.
 *
 * ids, mask, segment_ids: input tensors of the encoder, [length] each; mask and segment_ids may be NULL.
 * used: receives the number of tokens before the padding.
 */
SF_API sf_status sf_tokenize(const sf_tokenizer* tokenizer, const char* text, size_t size, size_t length, int32_t* ids,
                             int32_t* mask, int32_t* segment_ids, size_t* used);

typedef enum sf_filter { SF_FILTER_BILINEAR = 0, SF_FILTER_BICUBIC = 1 } sf_filter;

/* How images become the input of an image encoder. */
typedef struct sf_preprocessing {
  uint32_t height; /* of the input, in pixels */
  uint32_t width;
  uint32_t filter;        /* sf_filter */
  float mean[3], std[3]; /* of red, green and blue: the input is (value - mean) / std */
} sf_preprocessing;

/* Parses a preprocessing string such as `decode|resize(224,224,bilinear)|scale(-1,1)`. */
SF_API sf_status sf_parse_preprocessing(const char* text, sf_preprocessing* preprocessing);

/* Stretches an image to the size of an encoder's input.
 *
 * pixels: rows of red, green and blue bytes from top to bottom, `stride` bytes from one row to the next.
 * resized: [preprocessing->height, preprocessing->width, 3].
 */
SF_API sf_status sf_resize_image(const sf_preprocessing* preprocessing, const uint8_t* pixels, uint32_t width, uint32_t height,
                                 size_t stride, uint8_t* resized);

/* Stretches and scales an image to an encoder's input `tensor`, [preprocessing->height, preprocessing->width, 3]. */
SF_API sf_status sf_preprocess_image(const sf_preprocessing* preprocessing, const uint8_t* pixels, uint32_t width,
                                     uint32_t height, size_t stride, float* tensor);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* SEARCHFORGE_READER_H_ */
