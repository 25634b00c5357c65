/* C interface of the reader: opens the files of a release and searches them. C99 and C++17. */
#ifndef SEARCHFORGE_READER_H_
#define SEARCHFORGE_READER_H_

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

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* SEARCHFORGE_READER_H_ */
