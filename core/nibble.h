/* nibble.h - the public C API of nibble.
 *
 * Read by the C compiler and, with the lines that begin with '#' taken out, by
 * LuaJIT's ffi.cdef: so declarations only, enums for constants, no macros in
 * declarations and no inline functions.
 *
 * Conventions. Functions that can fail return 0 (NB_OK) or a code below zero
 * and leave one sentence in nb_error(). Out-parameters come first. Sizes are
 * int64_t. Letters: n out features, k in features, m tokens, g group size,
 * e experts. Tensors are row-major and contiguous; a linear weight is [n,k].
 * Indices are 0-based, ranges half-open. Nothing here prints, exits or aborts.
 */
#ifndef NIBBLE_H
#define NIBBLE_H
#include <stdint.h>
#include <stddef.h>
#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* ---- errors (error.c) ---------------------------------------------------- */

enum {
  NB_OK = 0,
  NB_EINVAL = -1,       /* the caller's mistake: shapes, dtypes, options       */
  NB_EFORMAT = -2,      /* a file or tensor whose contents break a rule        */
  NB_EIO = -3,          /* the system refused: open, read, write, full disk    */
  NB_ENOMEM = -4,       /* no memory                                           */
  NB_EINTR = -5,        /* the stop flag was set (Ctrl-C)                      */
  NB_EUNSUPPORTED = -6, /* well formed, but nothing here can do it             */
  NB_EINEXACT = -7      /* an exact conversion is impossible                   */
};

/* The sentence of this thread's last failure; never NULL. */
const char *nb_error(void);
/* "einval", "eformat", ...: the name of an NB_E code, as Lua hands it out. */
const char *nb_error_name(int code);

/* The stop flag. SIGINT sets it once nb_stop_install() was called; C jobs read
 * it once per block and return NB_EINTR. A second SIGINT within 2 s ends the
 * process with status 130. then: runs in the handler after that; NULL: nothing. */
void nb_stop_install(void (*then)(void));
/* SIGTERM and SIGUSR1 set it, too, as batch systems send them before they end a
 * job; they never end the process themselves. */
void nb_stop_install_batch(void);
void nb_stop_request(void);
int nb_stop_requested(void);
/* The signal that set the flag; 0: none did. */
int nb_stop_signal(void);
void nb_stop_clear(void);

/* Test hook: the n-th allocation from now on fails (n >= 1), once; 0 = never. */
void nb_debug_fail_alloc(int64_t nth);
/* The n that is left: which allocation from now on would fail; 0 = none will. */
int64_t nb_debug_fail_left(void);

/* Test hook: the n-th write to a file from now on (n >= 1) puts its first byte wrong, once. */
void nb_debug_damage_write(int64_t nth);

const char *nb_version(void);
/* This file, as ffi.cdef reads it: library and declarations never disagree. */
const char *nb_cdef(void);

/* ---- dtypes (dtype.c) ----------------------------------------------------
 * The first block is safetensors' list in its order (FORMATS 1). int4/uint4 are
 * packed two to a byte, low nibble first. */

enum {
  NB_BOOL = 0,
  NB_F4,
  NB_F6_E2M3,
  NB_F6_E3M2,
  NB_U8,
  NB_I8,
  NB_F8_E5M2,
  NB_F8_E4M3,
  NB_F8_E8M0,
  NB_F8_E4M3FNUZ,
  NB_F8_E5M2FNUZ,
  NB_I16,
  NB_U16,
  NB_F16,
  NB_BF16,
  NB_I32,
  NB_U32,
  NB_F32,
  NB_C64,
  NB_F64,
  NB_I64,
  NB_U64,
  NB_I4,
  NB_U4,
  NB_NDTYPES
};

/* Bits of one element; 0 for an unknown dtype. */
int64_t nb_dtype_bits(int dtype);
/* nibble's name ("bf16", "f8_e4m3", "u4"); NULL for an unknown dtype. */
const char *nb_dtype_name(int dtype);
/* The dtype of a name in nibble's or safetensors' spelling, or -1. */
int nb_dtype_parse(const char *name);

/* dst = src's values in dst's dtype (cast.c); as many elements, dst already made, no
 * overlap. Every dtype but c64 (NB_EUNSUPPORTED). Rounds once, to nearest even.
 *   to a float  beyond the range: what the format has for it, as torch (f8_e4m3, f6,
 *               f4: the greatest value; the fnuz: NaN; the others: infinity), or with
 *               saturate != 0 the greatest finite value, always; NaN stays NaN. f4 and
 *               f6 know none: their greatest value. f4 takes -0.0 as 0, as its peers
 *               do. f8_e8m0: the nearest power of two, halves up, sign dropped.
 *   to an int   half to even, then into the range, saturate or not; NaN is 0.
 *   to bool     1 where not zero (NaN is 1).
 * The same bytes on every instruction set and number of threads. */
struct nb_tensor;
int nb_cast(struct nb_tensor *dst, const struct nb_tensor *src, int saturate);

/* ---- buffers and tensors (buf.c, tensor.c) -------------------------------
 * A tensor is a struct by value over a counted buffer. Each nb_tensor that a
 * function fills owns one reference; nb_tensor_release gives it back. */

typedef struct nb_buf nb_buf;

typedef struct nb_tensor {
  void *data;  /* first element */
  nb_buf *buf; /* heap, mapped file or device memory; NULL = borrowed */
  int64_t shape[6];
  int32_t ndim, dtype, device, pad_; /* device: 0 the computer's memory, from 1 a CUDA device */
} nb_tensor;

/* Bytes of heap and device memory in live buffers (mappings don't count). */
int64_t nb_live_bytes(void);
int64_t nb_live_buffers(void);

/* A new zero-filled tensor on the heap, 64-byte aligned. */
int nb_tensor_new(nb_tensor *out, int dtype, int ndim, const int64_t *shape);
/* Another reference to the same storage, seen as dtype and shape, byte_offset
 * into it. Must lie inside t. */
int nb_tensor_view(nb_tensor *out, const nb_tensor *t, int dtype, int ndim, const int64_t *shape,
                   int64_t byte_offset);
/* Rows [r0, r1) of the first dimension, as a view. */
int nb_tensor_rows(nb_tensor *out, const nb_tensor *t, int64_t r0, int64_t r1);
void nb_tensor_release(nb_tensor *t);
int64_t nb_tensor_numel(const nb_tensor *t);
int64_t nb_tensor_bytes(const nb_tensor *t);
/* 1 when dtype, shape and every byte are the same; below 0: one of two alike lies on a device. */
int nb_tensor_equal(const nb_tensor *a, const nb_tensor *b);
/* 1 when t's memory is a mapped file's, which cannot be written. */
int nb_tensor_is_mapped(const nb_tensor *t);
/* dst's bytes = src's bytes; same dtype and number of elements. Threads. */
int nb_tensor_copy(nb_tensor *dst, const nb_tensor *src);
/* Slices src_at .. src_at+size-1 along dimension dim of src over those of dst from dst_at
 * on (all 0-based). One dtype of whole bytes; the other dimensions are the same. */
int nb_tensor_copy_block(nb_tensor *dst, const nb_tensor *src, int dim, int64_t dst_at, int64_t src_at,
                         int64_t size);
/* dst[r, c] = src[r, order[c]]: the columns of a matrix [n,k] in another order, i32 [k] from 0.
 * Elements of 1, 2 or 4 bytes; dst is another tensor than src. */
int nb_columns_gather(nb_tensor *dst, const nb_tensor *src, const nb_tensor *order);
/* Tells the system that the mapped pages of t are not needed soon, so that they
 * don't count as resident; the data stay readable. No-op on the heap. */
void nb_tensor_drop(const nb_tensor *t);

/* ---- elements (element.c) ----------------------------------------------------- */

/* Element i of the flattened tensor, any real dtype (c64: the real part); i must be
 * inside. set and fill round as nb_cast. */
double nb_tensor_get(const nb_tensor *t, int64_t i);
void nb_tensor_set(nb_tensor *t, int64_t i, double v);
void nb_tensor_fill(nb_tensor *t, double v);
/* Elements [at, at+n) as double and back; a block begins and ends on a byte. Every
 * NaN read is the plain one (LuaJIT takes NaNs with other bits for other types). */
int nb_tensor_load_f64(double *out, const nb_tensor *t, int64_t at, int64_t n);
int nb_tensor_store_f64(nb_tensor *t, int64_t at, const double *in, int64_t n);

/* ---- statistics (stats.c, compare.c) ----------------------------------------
 * Any real dtype, values as double (64-bit integers beyond 2^53 rounded). Sums in
 * double over fixed blocks in a fixed order: the same bits for any number of threads. */

/* NaN and infinities are counted and left out of everything else. */
typedef struct nb_stats {
  int64_t numel, zeros, nan, inf;
  double min, max, absmax, mean, std, kurtosis; /* kurtosis: m4 / m2^2, 3 for a normal distribution */
} nb_stats;

int nb_tensor_stats(nb_stats *out, const nb_tensor *t);

/* counts[i] of the values in [lo + i*w, lo + (i+1)*w), w = (hi-lo)/bins; hi belongs
 * to the last bin; values outside are not counted. */
int nb_tensor_hist(int64_t *counts, int bins, double lo, double hi, const nb_tensor *t);

/* How many finite values are below lo or above hi. */
int nb_tensor_count_beyond(int64_t *count, const nb_tensor *t, double lo, double hi);

enum { NB_CELLS_ABSMAX = 0, NB_CELLS_RMS = 1, NB_CELLS_MEAN = 2 };
/* A matrix from afar (cells.c): out F64 [rows, columns], one number for each cell of that grid over a [n,k], of a's
 * values or, with b (NULL: none), of a - b: the largest magnitude, the root of the mean square, or the mean. Cell r
 * has rows r*n/rows to (r+1)*n/rows, columns likewise. NaN: a value in it is not finite. */
int nb_cells(nb_tensor *out, const nb_tensor *a, const nb_tensor *b, int kind);

/* sums f64 [k] += the squares of each column of x f32 [m,k], in double; rows in order, so the sums
 * depend neither on threads nor on how the rows come in batches. */
int nb_column_squares(nb_tensor *sums, const nb_tensor *x);

typedef struct nb_comparison {
  int64_t numel, max_at, worst_row; /* 0-based; max_at in the flattened tensor */
  int64_t odd;                      /* pairs that differ by a NaN or an infinity: in no sum */
  double error2, a2, b2, dot, max_abs, worst_error2; /* sums of squares and of products */
} nb_comparison;

/* b against a, of one shape; a row is the last dimension's elements. by_column (may
 * be NULL): 1 to 64 sums of squared error over equal spans of the columns. */
int nb_tensor_compare(nb_comparison *out, double *by_column, int spans, const nb_tensor *a,
                      const nb_tensor *b);

/* What values must not be (scan.c): counts, and where the first is: 0-based in the flattened
 * tensor, -1: nowhere. Integers have zeros and negative ones only. */
typedef struct nb_value_scan {
  int64_t numel, nan, inf, zeros, negative, subnormal;
  int64_t first_odd, first_zero, first_negative; /* odd: NaN or infinite */
  int64_t zero_rows, first_zero_row;             /* rows of the last dimension that are all zeros */
} nb_value_scan;

/* One pass at the rate of memory; any real dtype of whole bytes (else NB_EUNSUPPORTED). The
 * sign of zeros and of NaN doesn't count. The same for any threads and instruction set. */
int nb_tensor_scan(nb_value_scan *out, const nb_tensor *t);

/* ---- content hashes (hash.c): XXH3, 128 bits ------------------------------ */

typedef struct nb_hash nb_hash;
nb_hash *nb_hash_new(void);
void nb_hash_update(nb_hash *h, const void *data, int64_t bytes);
/* 32 hex digits and a NUL into out; the state goes on. */
void nb_hash_hex(const nb_hash *h, char *out);
void nb_hash_free(nb_hash *h);
/* One tensor's bytes: the hash of the hashes of its pages of 4 KiB, 32 hex digits
 * and a NUL into out. Threads; mapped pages are let go again behind it. */
int nb_tensor_hash(char *out, const nb_tensor *t);

/* ---- processor and threads (cpu.c, thread.c) ------------------------------ */

enum {
  NB_CPU_AVX2 = 1,   /* AVX2, FMA, F16C, BMI2 */
  NB_CPU_AVX512 = 2, /* F, BW, VL, DQ */
  NB_CPU_AVX512_VNNI = 4,
  NB_CPU_AVX512_BF16 = 8,
  NB_CPU_AMX = 16, /* TILE, INT8, BF16, granted by the kernel */
  NB_CPU_AVX512_VBMI = 32
};

/* What this processor has, less what nb_cpu_limit or NB_CPU (portable, avx2,
 * avx512, all) took away. */
int nb_cpu(void);
/* What it has, whatever the limit. */
int nb_cpu_detected(void);
/* From now on use at most these features; -1 = all. For tests and benchmarks. */
void nb_cpu_limit(int features);
const char *nb_cpu_name(void);

int nb_threads(void);
/* 0 = as many as the machine (or OMP_NUM_THREADS) offers. */
void nb_threads_set(int n);

/* Seconds on a monotonic clock. */
double nb_now(void);
/* Peak resident memory of this process, bytes. */
int64_t nb_peak_rss(void);

/* ---- JSON (io/json.c) ----------------------------------------------------- */

/* Text with its length; bytes may hold NULs, and a NUL follows the last one. */
typedef struct nb_text {
  const char *data;
  int64_t bytes;
} nb_text;

enum {
  NB_JSON_NULL = 0,
  NB_JSON_FALSE,
  NB_JSON_TRUE,
  NB_JSON_NUMBER,
  NB_JSON_STRING,
  NB_JSON_ARRAY,
  NB_JSON_OBJECT
};

typedef struct nb_json nb_json;
typedef struct nb_json_value {
  int32_t type, pad_;
  double number;
  const char *string;   /* of a string; NULL otherwise */
  const char *key;      /* of an object's member; NULL otherwise */
  const nb_json *child; /* first element or member */
  const nb_json *next;  /* next one in the parent */
} nb_json_value;

/* Parses strict JSON (RFC 8259: no NaN, comments, trailing commas; at most 512
 * levels). what names the text in sentences, which tell line and column. Numbers
 * are doubles: integers beyond 2^53 are rounded. U+0000 in a string comes out as
 * the bytes C0 80. Free the root with nb_json_free. */
int nb_json_parse(nb_json **out, const char *text, int64_t bytes, const char *what);
void nb_json_get(nb_json_value *out, const nb_json *node);
void nb_json_free(nb_json *root);

/* ---- safetensors: reading (io/safetensors.c, io/safetensors_index.c) ------ */

typedef struct nb_safetensors nb_safetensors;

typedef struct nb_tensor_info {
  nb_text name;
  int64_t shape[6];
  int32_t ndim, dtype;
  int64_t file;  /* index of the file that holds it */
  int64_t begin; /* first byte in that file */
  int64_t bytes, params;
} nb_tensor_info;

/* Opens one .safetensors file, or a *.safetensors.index.json with all the files
 * it names: maps them, reads their headers and checks every rule of the format
 * (FORMATS 1); no tensor's bytes are read. A mapped file that another program
 * truncates later raises SIGBUS where its lost bytes are read. */
int nb_safetensors_open(nb_safetensors **out, const char *path);
/* Adds one more file, called name in sentences and nb_safetensors_file. After a
 * failure s must only be closed. */
int nb_safetensors_add(nb_safetensors *s, const char *path, const char *name);
/* Views of its tensors stay valid: they retain the mapping. */
void nb_safetensors_close(nb_safetensors *s);

int64_t nb_safetensors_count(const nb_safetensors *s);
/* Tensor i, in the order of the files and their headers. Text lives as long as s. */
int nb_safetensors_info(nb_tensor_info *out, const nb_safetensors *s, int64_t i);
/* Index of the tensor of that name, or -1. */
int64_t nb_safetensors_find(const nb_safetensors *s, const char *name, int64_t bytes);
/* What may follow on a level: a tensor is called so; tensors lie below it; levels do. */
enum { NB_LEVEL_TENSOR = 1, NB_LEVEL_BELOW = 2, NB_LEVEL_DEEP = 4 };
/* The names that begin with text, each up to its next dot; or, with inside, the modules
 * that have text in their names (the tensors where only those have): each once, at most
 * `most`, in the files' order. out: u8, for each '0' + NB_LEVEL_*, the name, and a NUL. */
int nb_safetensors_levels(nb_tensor *out, const nb_safetensors *s, const char *text, int64_t bytes,
                          int inside, int64_t most);
/* A mapped view of tensor i. */
int nb_safetensors_tensor(nb_tensor *out, const nb_safetensors *s, int64_t i);

int64_t nb_safetensors_files(const nb_safetensors *s);
/* Its name as the index tells it (or its last path component) and its size. */
nb_text nb_safetensors_file(const nb_safetensors *s, int64_t i, int64_t *bytes);
/* Entries of the files' __metadata__; of a key in several files, the first. */
int64_t nb_safetensors_metadata_count(const nb_safetensors *s);
nb_text nb_safetensors_metadata(const nb_safetensors *s, int64_t i, nb_text *value);
/* Sentences about what is odd but readable. */
int64_t nb_safetensors_warnings(const nb_safetensors *s);
const char *nb_safetensors_warning(const nb_safetensors *s, int64_t i);

/* ---- safetensors: writing (io/safetensors_write.c, io/write_queue.c) -------- */

typedef struct nb_writer nb_writer;

/* A checkpoint to be written into the folder dir (made if missing): tensors and
 * metadata are told first, then nb_writer_begin makes the files. A new shard
 * begins where the next tensor would pass shard_bytes of data. One shard is
 * called model.safetensors, several model-00001-of-000NN.safetensors; until
 * nb_writer_finish each carries ".partial" after its name. */
int nb_writer_new(nb_writer **out, const char *dir, int64_t shard_bytes);
int nb_writer_metadata(nb_writer *w, const char *key, int64_t key_bytes, const char *value,
                       int64_t value_bytes);
/* The next tensor: the order told is the order in the files. */
int nb_writer_add(nb_writer *w, const char *name, int64_t name_bytes, int dtype, int ndim,
                  const int64_t *shape);
/* Makes the files at their full size, headers written, room on the disk
 * reserved where the file system can. resume: a file that an interrupted run
 * left with this size and header keeps its contents (nb_writer_file tells).
 * Otherwise a checkpoint that is already in dir is an error. */
int nb_writer_begin(nb_writer *w, int resume);
/* Told before nb_writer_begin: only this file (0-based; a number that none has: no file)
 * is made and written, the others are left alone, and nb_writer_finish leaves it
 * NAME.partial: so several processes share a checkpoint, which one gathers by resume. */
void nb_writer_only(nb_writer *w, int64_t file);
/* Rows row0.. of the named tensor become t's rows. Written in the background:
 * t's buffer is retained, and must not change before nb_writer_flush. Blocks
 * while more than 64 MiB are queued. A failure of the system shows in the next
 * call and stays. */
int nb_writer_put(nb_writer *w, const char *name, int64_t name_bytes, const nb_tensor *t, int64_t row0);
/* The named tensor becomes what a direct repack (NB_AWQ_TO_CT, ...) makes of words
 * that its codes fill: strip by strip repacked, written, read back from the file,
 * hashed as by nb_tensor_hash, taken the way back and compared with words. All threads
 * but the caller's do that after it has returned, with a few MiB each, whatever the
 * size; the caller takes part when it begins the next one or takes a result. words'
 * buffer is retained. */
int nb_writer_repack(nb_writer *w, const char *name, int64_t name_bytes, const nb_tensor *words, int way);
/* The result of the first repack whose result was not taken: 1 when all that is in the
 * page cache now went back to words, 0 when not. hash: 32 hex digits and a NUL. */
int nb_writer_repacked(char *hash, nb_writer *w);
/* Returns when all that was put is in the page cache: safe from kill -9. */
int nb_writer_flush(nb_writer *w);
/* A mark after all that was put so far; wait returns when what lies before the
 * mark is in the page cache, while later blocks may still be on their way. */
int64_t nb_writer_mark(nb_writer *w);
int nb_writer_wait(nb_writer *w, int64_t mark);
/* The named tensor as written so far: a mapped view. Flush or wait first. */
int nb_writer_tensor(nb_tensor *out, nb_writer *w, const char *name, int64_t name_bytes);
/* Flush, fsync, rename every file to its name, fsync the folder. In a file that
 * was not kept by resume every byte must have been put. */
int nb_writer_finish(nb_writer *w);
/* Removes the partial files. */
int nb_writer_abort(nb_writer *w);
/* Unfinished files stay, for resume. */
void nb_writer_close(nb_writer *w);

int64_t nb_writer_files(const nb_writer *w);
/* Name of file i, and whether it was kept by resume. */
const char *nb_writer_file(const nb_writer *w, int64_t i, int *kept);
/* The file that holds the named tensor, or -1. */
int64_t nb_writer_file_of(const nb_writer *w, const char *name, int64_t name_bytes);
/* Bytes of all tensors. */
int64_t nb_writer_bytes(const nb_writer *w);

/* ---- journals (io/journal.c) ------------------------------------------------- */

typedef struct nb_journal nb_journal;

/* Opens or makes a journal of text lines, locks it against other processes, and
 * cuts off a torn or damaged tail. */
int nb_journal_open(nb_journal **out, const char *path);
/* One line (without newline characters), in one write: once this returns, the
 * line survives the process. */
int nb_journal_append(nb_journal *j, const char *line, int64_t bytes);
/* The lines that were found on opening. */
int64_t nb_journal_count(const nb_journal *j);
nb_text nb_journal_line(const nb_journal *j, int64_t i);
void nb_journal_close(nb_journal *j);

/* ---- files and folders (io/files.c) ---------------------------------------- */

enum { NB_PATH_NONE = 0, NB_PATH_FILE, NB_PATH_DIR, NB_PATH_OTHER };

/* What lies at path (links followed). */
int nb_path_kind(const char *path);
/* The folder's entries as NUL-terminated names in a U8 tensor, sorted by byte;
 * those of folders end in '/'. */
int nb_dir_list(nb_tensor *out, const char *path);
/* Makes the folder and its parents; one that is there is fine. */
int nb_dir_make(const char *path);
/* path gets these bytes or keeps what it had: temporary file, fsync, rename. */
int nb_file_write(const char *path, const void *data, int64_t bytes);
/* dst becomes a byte-exact copy of src, atomically as nb_file_write. */
int nb_file_copy(const char *dst, const char *src);
int nb_file_remove(const char *path);
/* The file's size and when it last changed, in ns since 1970. */
int nb_file_stamp(int64_t *bytes, int64_t *changed_ns, const char *path);

/* ---- names (natural.c) ------------------------------------------------------------ */

/* order[i] = index of the name that comes i-th in natural order: bytes as bytes, runs of
 * digits as numbers ("layers.2" before "layers.10"), leading zeroes last of all. */
int nb_natural_order(int64_t *order, const nb_text *names, int64_t count);
/* Names of tensors by module, modules in natural order (io/modules.c): order[i] the tensor that comes i-th,
 * module[i] the number of its module, from 0, module_bytes[i] how much of its name is the module's: what precedes
 * the last dot, or all of it where there is none or what follows is one of `whole`. */
int nb_module_order(int64_t *order, int64_t *module, int64_t *module_bytes, const nb_text *tensors,
                    int64_t count, const nb_text *whole, int64_t whole_count);
/* Names that differ in numbers only (a number: a part between dots, of 1 to 15 digits) and are of one kind
 * are a group (io/modules.c): group [count] its number, from 0 in order of appearance; numbers (I64, made here)
 * from starts[i] to starts[i+1] (starts: [count+1]) those of name i. */
int nb_name_groups(int32_t *group, int64_t *starts, nb_tensor *numbers, const nb_text *names,
                   const int32_t *kinds, int64_t count);
/* Columns that UTF-8 text takes on a terminal (io/unicode.c): 2 for wide characters, 0 for what combines,
 * for control characters and for colours (ESC [ … m); 1 for a byte that is no UTF-8. */
int64_t nb_text_columns(const char *text, int64_t bytes);

/* ---- tokenizers: byte-level BPE (io/bpe.c, io/bpe_split.c, io/unicode.c) ----
 * Built up from a tokenizer.json by Lua, in this order: normal form, vocabulary,
 * merges, added tokens, steps. One thread at a time uses one of them. */

typedef struct nb_bpe nb_bpe;

enum { NB_NFC = 1, NB_NFD = 2, NB_NFKC = 3, NB_NFKD = 4 };
/* What becomes of a pattern's matches. */
enum {
  NB_SPLIT_REMOVED = 0,
  NB_SPLIT_ISOLATED = 1,
  NB_SPLIT_WITH_PREVIOUS = 2,
  NB_SPLIT_WITH_NEXT = 3,
  NB_SPLIT_CONTIGUOUS = 4
};
enum {
  NB_ADDED_SPECIAL = 1,
  NB_ADDED_LSTRIP = 2,
  NB_ADDED_RSTRIP = 4,
  NB_ADDED_SINGLE_WORD = 8,
  NB_ADDED_NORMALIZED = 16 /* looked for after normalizing, in its normal form */
};
enum { NB_DECODE_SKIP_SPECIAL = 1, NB_DECODE_RAW = 2 };

/* NULL when there is no memory. ignore_merges: a word that is in the vocabulary
 * is one token, whatever the merges say. */
nb_bpe *nb_bpe_new(int ignore_merges);
void nb_bpe_free(nb_bpe *b);
/* Normalizes texts to a form (0: not). */
int nb_bpe_normal_form(nb_bpe *b, int form);
/* A vocabulary entry, its bytes spelled in the byte-level alphabet. */
int nb_bpe_token(nb_bpe *b, const char *text, int64_t bytes, int32_t id);
/* The next merge by rank: ids left and right become id merged. */
int nb_bpe_merge(nb_bpe *b, int32_t left, int32_t right, int32_t merged);
/* A token that is found in the text itself, before everything else. */
int nb_bpe_added(nb_bpe *b, const char *text, int64_t bytes, int32_t id, int flags);
/* The next pre-tokenizer step: cut at the matches of a PCRE2 pattern. */
int nb_bpe_split(nb_bpe *b, const char *pattern, int64_t bytes, int behavior, int invert);
/* The next pre-tokenizer step: a blank in front, unless there is one. */
int nb_bpe_prefix_space(nb_bpe *b);
/* Ids of a UTF-8 text as i32 [n]. plain: special tokens in it are text. */
int nb_bpe_encode(nb_tensor *ids, nb_bpe *b, const char *text, int64_t bytes, int plain);
/* The text of ids as u8 [bytes]; ill-formed UTF-8 becomes U+FFFD unless RAW. */
int nb_bpe_decode(nb_tensor *text, nb_bpe *b, const int32_t *ids, int64_t n, int flags);

/* ---- scales and column groups (layout/scales.c) ---------------------------- */

/* Scales are f16, bf16 or f32; of float codes also f8_e4m3 or f8_e8m0. */

/* 1 when no scale is NaN, infinite or zero. */
int nb_scales_sound(const nb_tensor *scales);
/* NB_EFORMAT, naming module `name`, row and group, when a scale of the tile is NaN or
 * infinite, or zero while its group holds other codes than the zero-point. (Negative
 * scales are sound: AutoRound writes them.) scales f16|bf16|f32 [r,G]; codes u8 [r,k];
 * zeros u8 [r,G] or NULL; g_idx i32 [k] or NULL; row0: the tile's first row. */
int nb_scales_check(const nb_tensor *scales, const nb_tensor *codes, const nb_tensor *zeros,
                    const nb_tensor *g_idx, int bits, int64_t row0, const char *name);
/* 1 when g_idx [k] says c / group for every column c (no activation order), 0 when it
 * says something else; NB_EFORMAT, naming `name`, when an entry is outside 0..groups-1. */
int nb_g_idx_check(const nb_tensor *g_idx, int64_t group, int64_t groups, const char *name);
/* dst = src in dst's dtype (f16|bf16|f32 [r,G] each), every value the same number:
 * NB_EINEXACT names the module, row (from row0 on) and group of the first that is not. */
int nb_scales_cast(nb_tensor *dst, const nb_tensor *src, int64_t row0, const char *name);
/* 1 when both are the same numbers, whatever their dtypes. */
int nb_scales_equal(const nb_tensor *a, const nb_tensor *b);
/* Streams a quantized weight's rows into h: codes u8 [r,k], scales as float32, zeros u8
 * [r,G] (NULL: 2^(bits-1)), row after row; tiles one after another give the whole's hash. */
int nb_hash_rows(nb_hash *h, const nb_tensor *codes, const nb_tensor *scales, const nb_tensor *zeros,
                 int bits);

/* The same two for float codes (f8_e4m3, or u8 with one e2m1 code a byte) and scales
 * [ceil(r/rows), ceil(k/columns)], one a block of rows x columns. The check also refuses
 * codes that are NaN; an f8_e4m3 scale may be zero over any codes. */
int nb_float_check(const nb_tensor *scales, const nb_tensor *codes, int64_t rows, int64_t columns,
                   int64_t row0, const char *name);
int nb_hash_float_rows(nb_hash *h, const nb_tensor *codes, const nb_tensor *scales, int64_t rows,
                       int64_t columns);

/* ---- packings (layout/bitpack.c, ct.c, gptq.c, awq.c, awq_gemv.c) -----------
 * Canonical codes are U8, one code a byte, unsigned, [n,k] row-major. Words are
 * I32 (or U32). A code that needs more than `bits` bits is an error that names
 * the first one; the words of that call are then undefined.
 *
 * nb_P_pack writes and nb_P_unpack reads rows n0 .. n0+r of the weight: codes is
 * the tile [r,k], words the WHOLE tensor of the file. Tiles may be done in any
 * order, and side by side by threads as long as no two share a word: begin and
 * end them on a multiple of 32 rows for zero-points, of 8 for weights. */

/* ct: I32 [n, ceil(k*b/32)] dense (or [n, ceil(k/floor(32/b))] legacy, told by
 * the width), 1 to 8 bits. Zero-points I32 [ceil(n*b/32), G] along n. */
int nb_ct_pack(nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0);
int nb_ct_unpack(nb_tensor *codes, const nb_tensor *words, int bits, int64_t n0);
/* zeros: U8 [r,G], rows n0 .. n0+r of n; n0 and r multiples of 8 except at the end. */
int nb_ct_pack_zeros(nb_tensor *words, const nb_tensor *zeros, int bits, int64_t n0, int64_t n);
int nb_ct_unpack_zeros(nb_tensor *zeros, const nb_tensor *words, int bits, int64_t n0, int64_t n);

/* gptq: I32 [ceil(k*b/32), n] dense along k; 2, 3, 4, 8 bits. Zero-points
 * I32 [G, ceil(n*b/32)]; minus_one: v1, fields hold zero-1 mod 2^bits. */
int nb_gptq_pack(nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0);
int nb_gptq_unpack(nb_tensor *codes, const nb_tensor *words, int bits, int64_t n0);
int nb_gptq_pack_zeros(nb_tensor *words, const nb_tensor *zeros, int bits, int64_t n0, int64_t n,
                       int minus_one);
int nb_gptq_unpack_zeros(nb_tensor *zeros, const nb_tensor *words, int bits, int64_t n0, int64_t n,
                         int minus_one);

/* awq: AutoAWQ gemm, I32 [k, n/pf] interleaved, pf = 32/bits; 4 or 8 bits; n0 and
 * r multiples of pf. Zero-points I32 [G, n/pf] the same way. */
int nb_awq_pack(nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0);
int nb_awq_unpack(nb_tensor *codes, const nb_tensor *words, int bits, int64_t n0);
int nb_awq_pack_zeros(nb_tensor *words, const nb_tensor *zeros, int bits, int64_t n0);
int nb_awq_unpack_zeros(nb_tensor *zeros, const nb_tensor *words, int bits, int64_t n0);

/* awq_gemv: I32 [n, k/8] plain nibbles along k; zero-points I32 [n, w], 8*w >= G. */
int nb_awq_gemv_pack(nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0);
int nb_awq_gemv_unpack(nb_tensor *codes, const nb_tensor *words, int bits, int64_t n0);
int nb_awq_gemv_pack_zeros(nb_tensor *words, const nb_tensor *zeros, int bits, int64_t n0);
int nb_awq_gemv_unpack_zeros(nb_tensor *zeros, const nb_tensor *words, int bits, int64_t n0);

/* awq_gemv_fast: I16 [n/4, k], n0 and r multiples of 4, k of 64. qzeros F16 [G',n]
 * hold -(scale*zero); unpacking fails with NB_EINEXACT where that is no whole
 * zero-point of 0 to 15. scales: the whole F16 [G',n]; zeros: the tile U8 [r,G]. */
int nb_awq_gemv_fast_pack(nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0);
int nb_awq_gemv_fast_unpack(nb_tensor *codes, const nb_tensor *words, int bits, int64_t n0);
int nb_awq_gemv_fast_pack_zeros(nb_tensor *qzeros, const nb_tensor *scales, const nb_tensor *zeros,
                                int64_t n0);
int nb_awq_gemv_fast_unpack_zeros(nb_tensor *zeros, const nb_tensor *qzeros, const nb_tensor *scales,
                                  int64_t n0);

/* bytes.c. fp4: U8 [n, ceil(k/2)], the even column in the low nibble. int8: I8 [n,k], the
 * code less 2^(bits-1); reading refuses what doesn't fit (NB_EFORMAT, naming `name`). */
int nb_fp4_pack(nb_tensor *bytes, const nb_tensor *codes, int64_t n0);
int nb_fp4_unpack(nb_tensor *codes, const nb_tensor *bytes, int64_t n0);
int nb_int8_pack(nb_tensor *bytes, const nb_tensor *codes, int bits, int64_t n0);
int nb_int8_unpack(nb_tensor *codes, const nb_tensor *bytes, int bits, int64_t n0, const char *name);

/* Any matrix of codes U8 [a,b] as dense streams: axis 0 packs down the columns
 * into I32 [ceil(a*bits/32), b], axis 1 along the rows into [a, ceil(b*bits/32)]. */
int nb_bits_pack(nb_tensor *words, const nb_tensor *codes, int bits, int axis);
int nb_bits_unpack(nb_tensor *codes, const nb_tensor *words, int bits, int axis);

/* dst [c,r] = src [r,c] transposed; elements of 8, 16, 32 or 64 bits. Experts
 * [e,r,c] each for itself. */
int nb_transpose(nb_tensor *dst, const nb_tensor *src);
/* whole [c,n], columns col0 .. col0+r = tile [r,c] transposed; and back. */
int nb_transpose_put(nb_tensor *whole, const nb_tensor *tile, int64_t col0);
int nb_transpose_get(nb_tensor *tile, const nb_tensor *whole, int64_t col0);

/* ---- direct repacks (layout/direct.c) ---------------------------------------
 * 4-bit words of one format into another's without codes between (FORMATS 10);
 * the two-step way gives the same words. I32 (or U32):
 *   awq [k, n/8]    gptq [ceil(k/8), n]    ct [n, ceil(k/8)]
 * k is the AWQ tensor's; the other's nibbles past k are written 0. Zero-points and
 * scales are moved by nb_P_unpack_zeros / pack_zeros and nb_transpose. */
int nb_awq_to_ct(nb_tensor *out, const nb_tensor *awq);
int nb_ct_to_awq(nb_tensor *out, const nb_tensor *ct);
int nb_awq_to_gptq(nb_tensor *out, const nb_tensor *awq);
int nb_gptq_to_awq(nb_tensor *out, const nb_tensor *gptq);
/* Any bits: the same words, transposed. Needs a trivial g_idx. */
int nb_gptq_to_ct(nb_tensor *out, const nb_tensor *gptq);
int nb_ct_to_gptq(nb_tensor *out, const nb_tensor *ct);

enum { NB_AWQ_TO_CT, NB_CT_TO_AWQ, NB_AWQ_TO_GPTQ, NB_GPTQ_TO_AWQ, NB_GPTQ_TO_CT, NB_CT_TO_GPTQ };
/* Rows row0.. of what the repack makes of words, as many as out has. Where AWQ is
 * on one side, rows of AWQ begin on a multiple of 8, rows of CT also end on one. */
int nb_repack_rows(nb_tensor *out, const nb_tensor *words, int way, int64_t row0);
/* Whether such rows go back to the words they came from, by the repack the other
 * way: 1 or 0. k must fill its words. */
int nb_repack_check(const nb_tensor *rows, const nb_tensor *words, int way, int64_t row0);

/* ---- marlin (layout/marlin.c, marlin_scales.c; SYSTEMS 2.3, 2.4) -------------
 * Run-time layout of the Marlin kernels; 4 or 8 bits; a8: activations of one
 * byte. All take one matrix or experts [E,...]. Words are I32 (or U32). */

/* out [k/16, n*bits/2] = words [k/pf, n] (GPTQ order) in tiles. perm: NULL, or I32
 * [k] ([E,k]; [0] and [E,0] mean none): tile row i takes source row perm[i]; not
 * with a8. Needs k % 16, n % 64 (a8: k % 32, n % 32). MRL-30 to MRL-34. */
int nb_marlin_repack(nb_tensor *out, const nb_tensor *words, const nb_tensor *perm, int bits, int a8);
/* The same from AWQ words [k, n/pf]. MRL-33. */
int nb_marlin_awq_repack(nb_tensor *out, const nb_tensor *words, int bits, int a8);
/* Words in GPTQ order or, with awq, AWQ's become tiles where they lie, in as many bytes: the
 * tensor keeps its shape. fold: 4-bit codes are changed first as nb_marlin_fp8_preprocess
 * does, with zeros (AWQ's, or NULL). The same words as step by step, past the memory once. */
int nb_marlin_repack_here(nb_tensor *words, const nb_tensor *zeros, int awq, int bits, int a8, int fold);
/* The inverse of nb_marlin_repack. */
int nb_marlin_unpack(nb_tensor *words, const nb_tensor *marlin, const nb_tensor *perm, int bits, int a8);
/* I32 [1024]: the permutation of a tile's codes, counted as 16-column slices
 * [tile_k, 16] one after the other. */
int nb_marlin_weight_perm(nb_tensor *perm, int bits, int a8);
/* I32 [64] (grouped) or [32] (single): out[p] = in[perm[p]] in each block. MRL-20. */
int nb_marlin_scale_perm(nb_tensor *perm, int single);

/* scales [G,n] of any 8-, 16- or 32-bit dtype, same shape out; k: of that matrix.
 * Grouped where g != -1, g < k and not a8, else single. inverse: undoes it. MRL-21. */
int nb_marlin_permute_scales(nb_tensor *out, const nb_tensor *scales, int64_t k, int64_t g, int a8,
                             int inverse);
/* bias [..., n]: the single permutation. MRL-23. */
int nb_marlin_permute_bias(nb_tensor *out, const nb_tensor *bias, int inverse);
/* out [G, n/pf] = zeros U8 [G,n] permuted, interleaved (not with a8), packed. MRL-25, MRL-26. */
int nb_marlin_zero_points(nb_tensor *out, const nb_tensor *zeros, int bits, int a8);
int nb_marlin_unpack_zero_points(nb_tensor *zeros, const nb_tensor *marlin, int bits, int a8);
/* The same from AWQ words [G, n/pf] (MRL-27) and from plainly packed ones (MRL-28). */
int nb_marlin_awq_zero_points(nb_tensor *out, const nb_tensor *words, int bits, int a8);
int nb_marlin_packed_zero_points(nb_tensor *out, const nb_tensor *words, int bits, int a8);

/* ---- numbers for the Marlin kernels (layout/marlin_numeric.c, act_quant.c) ---- */

/* int8 activations, scales in groups: out (f16 or bf16, as scales) holds the int16
 * bits of round(s/max*4096), *global = max/4096 over the whole tensor. The division
 * and the product round in the scales' dtype, as the reference does. MRL-40, MRL-41. */
int nb_marlin_int8_scales(nb_tensor *out, float *global, const nb_tensor *scales);
/* fp8 activations: code q becomes q-z, or 15-q where q < z; z = 8, or the zero-point
 * in the same slot (AWQ words [k, n/8] with zeros [G, n/8]). out may be words.
 * inverse: back to q. bits must be 4. MRL-42 to MRL-44. */
int nb_marlin_fp8_preprocess(nb_tensor *out, const nb_tensor *words, const nb_tensor *zeros, int bits,
                             int inverse);
/* out = scales * factor in float32, rounded to out's dtype (both f16, bf16 or f32): 512
 * for MRL-42, 2^8 or 2^120 for MRL-48. out may be scales. */
int nb_scales_multiply(nb_tensor *out, const nb_tensor *scales, double factor);
/* NVFP4 block scales (f16 or bf16, already permuted) to the kernel's bytes: columns
 * 0 2 1 3 of each 4, times factor and 2^7 in f16, below 2 to 0, bits 14..7. */
int nb_marlin_nvfp4_scales(nb_tensor *out, const nb_tensor *scales, double factor);
/* The power of two that such bf16 scales can be raised by (1 for f16). */
int nb_marlin_nvfp4_factor(double *factor, const nb_tensor *scales);
/* MX block scales (8 bits, already permuted): columns 0 2 1 3 of each 4; with a8 in place and raised
 * by 6, at most to 254. */
int nb_marlin_mx_scales(nb_tensor *out, const nb_tensor *scales, int a8);
/* Block scales [m,k] or [e,m,k] of 8 or 16 bits, padded to 128 x 4 with 0, in tensor-core
 * order, and back (out: without the padding). CTM-NVFP4-14. */
int nb_swizzle_blockscale(nb_tensor *out, const nb_tensor *scales);
int nb_unswizzle_blockscale(nb_tensor *out, const nb_tensor *swizzled);

/* ---- stacks of expert weights (layout/experts.c, fp8.c) -----------------------
 * [e,r,c], or one matrix [r,c]; elements of whole bytes; all experts in one call. */

/* Row i of each expert of out = row index[i] (I32, from 0) of that expert of in. */
int nb_rows_take(nb_tensor *out, const nb_tensor *in, const nb_tensor *index);
/* out = in with zeros below and, in each of `parts` equal parts of the columns, on the right. */
int nb_matrix_pad(nb_tensor *out, const nb_tensor *in, int64_t parts);
/* out's columns are in's column 0 widths[0] times, column 1 widths[1] times, ..., cut at out's width. */
int nb_columns_repeat(nb_tensor *out, const nb_tensor *in, const int64_t *widths);
/* Words of eight 4-bit codes, in place: biased by 8 to two's complement, and back. */
int nb_int4_flip(nb_tensor *words);
/* Stable: sorted[i] = g_idx[perm[i]], ascending along the last axis; all I32. MRL-32, ORC-17. */
int nb_groups_sort(nb_tensor *sorted, nb_tensor *perm, const nb_tensor *g_idx);

/* weight f8_e4m3 or f8_e4m3fnuz [e,n,k], scales F32 [e,shards] -> out, max F32 [e]: every shard of
 * an expert with the largest of its scales, v = f16(w*s), then rounded(v * (1/max)) within the
 * format's range; the shard that has it already keeps its bytes. widths: each shard's rows, NULL:
 * equal. A last scale that was never set (-FLT_MAX) leaves the expert as it is. CTM-FP8-11. */
int nb_fp8_requantize(nb_tensor *out, nb_tensor *max, const nb_tensor *weight, const nb_tensor *scales,
                      const int64_t *widths);
/* f8_e4m3 -> f8_e4m3fnuz: 0x80 becomes 0, other bytes stay, which halves their values; *nans
 * counts 0x7f and 0xff, NaN before and +-240 after. CTM-FP8-09. */
int nb_fp8_to_fnuz(nb_tensor *out, int64_t *nans, const nb_tensor *weight);

/* ---- integer quantization (quant/: rtn.c, mse.c, dequant.c, error.c) --------
 * Codes are unsigned, one a byte: u = q + 2^(bits-1) on a symmetric grid. Scales
 * and zero-points are [n,G], G groups of `group` consecutive columns; a weight
 * is (code - zero) * scale, zero = 2^(bits-1) on a symmetric grid. */

enum {
  NB_RANGE_FULL = 0,   /* scale = absmax / ((2^bits - 1) / 2): compressed-tensors' rule */
  NB_RANGE_NARROW = 1, /* scale = absmax / (2^(bits-1) - 1): no value is clipped        */
  /* vLLM's rule: scale = max(max / (2^(bits-1) - 1), -min / 2^(bits-1)); and in dtype
   * arithmetic a zero-point is added after rounding (as in AutoAWQ), not before */
  NB_RANGE_TIGHT = 2
};

enum {
  NB_ARITHMETIC_F32 = 0,  /* float32; codes are found with the scale as stored */
  NB_ARITHMETIC_DTYPE = 1 /* compressed-tensors' way: each operation is rounded to the weight's dtype */
};

typedef struct nb_rtn_options {
  int32_t bits;      /* 2 to 8 */
  int32_t symmetric; /* 1: no zero-points; 0: integral zero-points 0 to 2^bits-1 */
  /* columns a group; -1: the whole row; 0: the whole tensor, its scale repeated in each of [n,1] */
  int64_t group;
  int32_t range;      /* NB_RANGE_*: the scale of a symmetric grid */
  int32_t arithmetic; /* NB_ARITHMETIC_* */
} nb_rtn_options;

/* Round to nearest: codes u8 [n,k], scales f32|bf16|f16 [n,G], zeros u8 [n,G]
 * (NULL when symmetric) from w f32|bf16|f16 [n,k]. Exact in every path: the bytes
 * depend neither on threads nor on the instruction set. K must be a multiple of
 * the group (FORMATS 4). A group of zeros gets the scale dtype's epsilon, as
 * compressed-tensors stores it; a scale too small for its dtype becomes the
 * dtype's smallest positive number. NB_EFORMAT: NaN or Inf in w, with row and
 * column; NB_EUNSUPPORTED: a scale too large for its dtype, or bits not 2 to 8. */
int nb_rtn_quantize(nb_tensor *codes, nb_tensor *scales, nb_tensor *zeros, const nb_tensor *w,
                    const nb_rtn_options *options);

typedef struct nb_mse_options {
  nb_rtn_options rtn; /* arithmetic float32; group not 0 */
  int32_t grid;       /* the finest step is 1/grid of the range */
  float max_shrink;   /* how much of the range may go, 0 to below 1 */
  float norm;         /* the power of the error that is least: 1 to 4; 2: mean squared error */
} nb_mse_options;

/* Clipping by search: each group's range shrinks from where nothing is clipped,
 * first in steps of 4/grid, then around the best in steps of 1/grid, and the one
 * with the least sum of |w - dequantized|^norm is kept; the range that
 * nb_rtn_quantize takes is a candidate, so the sum is never greater. Same
 * tensors, same bytes everywhere, same errors as nb_rtn_quantize. */
int nb_mse_quantize(nb_tensor *codes, nb_tensor *scales, nb_tensor *zeros, const nb_tensor *w,
                    const nb_mse_options *options);

/* out f32|bf16|f16 [n,k] = (codes - zeros) * scales: the exact product rounded to
 * float32, then to out's dtype. zeros NULL: 2^(bits-1). g_idx i32 [k] or NULL names
 * each column's group, else columns divide evenly. One scale (numel 1) serves the
 * whole tensor. NB_EFORMAT: a g_idx entry without a group. */
int nb_dequantize(nb_tensor *out, const nb_tensor *codes, const nb_tensor *scales, const nb_tensor *zeros,
                  const nb_tensor *g_idx, int bits);

/* out f32|bf16|f16 [n,k] = codes * scales, float codes: f8_e4m3, f8_e4m3fnuz, or u8 with one
 * e2m1 code a byte. scales f32|bf16|f16|f8_e4m3|f8_e8m0 [ceil(n/rows), ceil(k/columns)]: one for each
 * block of rows x columns. global f32 [1] or NULL: scales are divided by it first (NVFP4).
 * In float32, then rounded to out's dtype. NB_EFORMAT: a global scale of 0, NaN or Inf.
 * (dequant_float.c) */
int nb_dequantize_float(nb_tensor *out, const nb_tensor *codes, const nb_tensor *scales,
                        const nb_tensor *global, int64_t rows, int64_t columns);

enum { NB_PACKING_NONE = 0, NB_PACKING_CT, NB_PACKING_GPTQ, NB_PACKING_AWQ, NB_PACKING_FP4 };

/* A weight [n,k] in any form, borrowed. Floats: values f32|bf16|f16 [n,k], scales NULL. Integer codes: bits
 * 1 to 8, values u8 [n,k], or words by packing (ct: the dense one); zeros, g_idx as in nb_dequantize. Float
 * codes: bits 0, values as in nb_dequantize_float, or e2m1 two a byte (fp4: u8 [n, ceil(k/2)]); a factor (0: none) multiplies and global is not looked at.
 * scales: one a block of rows x columns (ints: 1 x group), or one for all. */
typedef struct nb_weight {
  int64_t n, k, rows, columns;
  const struct nb_tensor *values, *scales, *zeros, *g_idx, *global;
  int32_t bits, packing;
  float factor;
} nb_weight;

/* b against a, dequantized to float32 in segments of rows. Sums in float32 over up to 2048 columns (in
 * double where that would not hold them), then in double; the same bits for any number of threads and any
 * instruction set. Rows are whole ones; max_at in the flattened weight. (quant/difference.c) */
int nb_weight_compare(nb_comparison *sums, const nb_weight *a, const nb_weight *b);

/* Codes u8 [n,k] of w f32|bf16|f16 [n,k] on a given grid: round((w + s*z) / s) in
 * float32, clamped to 0 .. 2^bits-1. scales [n,G] as w; zeros [n,G] u8 or float, NULL:
 * 2^(bits-1); g_idx as in nb_dequantize. NB_EFORMAT: NaN, or a scale of 0. (given_grid.c) */
int nb_grid_codes(nb_tensor *codes, const nb_tensor *w, const nb_tensor *scales, const nb_tensor *zeros,
                  const nb_tensor *g_idx, int bits);

/* ---- quantization onto small floats (quant/float.c) --------------------------- */

enum {
  NB_FLOAT_CT = 0,  /* compressed-tensors' scales                                           */
  NB_FLOAT_VLLM = 1 /* vLLM's for activations: NVFP4 by reciprocals, MX so that none clips  */
};

typedef struct nb_float_options {
  int64_t rows, columns; /* of the block that one scale serves */
  int32_t arithmetic;    /* NB_ARITHMETIC_*: quotients (and FP8 scales) rounded to w's dtype, or not */
  int32_t rule;          /* NB_FLOAT_*: of f8_e4m3 and f8_e8m0 scales */
  int32_t given;         /* 1: scales are there already; only codes are made */
  float global;          /* with f8_e4m3 scales: the tensor's own scale, a divisor of theirs */
} nb_float_options;

/* Round to nearest: codes [n,k] and scales [ceil(n/rows), ceil(k/columns)] from w
 * f32|bf16|f16 [n,k]. Codes f8_e4m3 under scales f32|bf16|f16 = absmax / 448 (FP8) or
 * f8_e8m0 (MXFP8); codes u8, one e2m1 code a byte, under f8_e4m3 = absmax / 6 * global
 * (NVFP4) or f8_e8m0 (MXFP4). The same bytes in every path. A block of zeros gets the
 * scale that compressed-tensors stores: epsilon, 0.125, 2^-127. NB_EFORMAT: NaN or Inf in
 * w; NB_EUNSUPPORTED: a scale too large for its dtype. */
int nb_float_quantize(nb_tensor *codes, nb_tensor *scales, const nb_tensor *w, const nb_float_options *o);
/* The largest magnitude of w (f32|bf16|f16); NB_EFORMAT names a NaN or Inf. */
int nb_absmax(float *out, const nb_tensor *w);
/* The scale of an FP8 block whose largest magnitude is absmax, as stored. */
float nb_fp8_scale(float absmax, int w_dtype, int s_dtype, int arithmetic);
/* NVFP4's global scale, 448 * 6 / absmax; 1 where that is infinite. */
float nb_nvfp4_global(float absmax, int w_dtype, int arithmetic);

typedef struct nb_quant_sums {
  double error2, weight2; /* sums of squares: of w - dequantized, of w */
  double max_abs;         /* largest |w - dequantized| */
  double worst_error2;    /* error2 of the worst row */
  int64_t worst_row, rows, numel;
} nb_quant_sums;

/* Adds the error of a quantized weight, or of the next tile of its rows, against
 * w f32|bf16|f16 [n,k] to sums (zeroed before the first). The same sums whatever
 * the threads, as long as the tiles are. */
int nb_quant_error(nb_quant_sums *sums, const nb_tensor *codes, const nb_tensor *scales,
                   const nb_tensor *zeros, const nb_tensor *g_idx, int bits, const nb_tensor *w);

/* The same of a weight that is dequantized already, f32 [n,k]. */
int nb_quant_error_of(nb_quant_sums *sums, const nb_tensor *dequantized, const nb_tensor *w);

/* Fails unless codes u8 [n,k] and zeros u8 [n,G] (or NULL) lie in 0 to 2^bits-1
 * and scales [n,G] are finite and above 0; names the first that doesn't. */
int nb_quant_check(const nb_tensor *codes, const nb_tensor *scales, const nb_tensor *zeros, int bits);

/* x rounded to f32, bf16 or f16 and back, as stored scales are. */
float nb_round_scale(float x, int dtype);

/* ---- MX block scales (quant/mx.c) ---------------------------------------------- */

/* scales (f8_e8m0) of blocks whose largest magnitudes are amax (same shape, any real
 * dtype of whole bytes), for elements of 4 (f4) or 8 (f8_e4m3) bits, as
 * compressed-tensors' generate_mx_scales; not finite: 255, e8m0's NaN. */
int nb_mx_scales(nb_tensor *scales, const nb_tensor *amax, int bits);

/* ---- activations as a quantized layer sees them (quant/activations.c) ------------ */

typedef struct nb_act_options {
  int32_t is_float; /* 0: integers of `bits` (2 to 8); 1: f4 (bits 4) or f8_e4m3 (bits 8) */
  int32_t bits;
  int32_t symmetric;   /* 0: integers with a zero-point */
  int32_t dynamic;     /* 1: scales from x; 0: `scale` and `zero_point` as given */
  int32_t scale_dtype; /* of dynamic scales: NB_F32, NB_F8_E4M3 (times global) or NB_F8_E8M0 */
  int32_t dtype;       /* x is rounded to it first: NB_F32 (not), NB_BF16 or NB_F16 */
  int64_t group;       /* columns that share a scale; -1: a row does (a token); 0: `span` rows do */
  int64_t span;        /* rows of a tensor, for group 0: every so many begin anew; 0: all rows */
  float scale, zero_point, global;
} nb_act_options;

/* out = x quantized and dequantized again, f32 [m,k] both; out may be x. float32 in
 * compressed-tensors' order of operations:
 *   scale = absmax * 2 / (qmax - qmin), or (max - min) / (qmax - qmin) where 0 belongs to
 *   the range; e4m3: round(global * scale) / global; e8m0: as nb_mx_scales; 0 becomes epsilon
 *   out   = (round(clamp(x / scale + zero)) - zero) * scale
 * NaN and infinities of x come out as NaN, in all that shares their scale. */
int nb_act_fake_quant(nb_tensor *out, const nb_tensor *x, const nb_act_options *options);
/* codes [m,k], i8 or f8_e4m3, and scales f32 [m,1] of which nb_act_fake_quant's values are the products: for
 * kernels that multiply codes. Symmetric, group -1 or 0, floats of 8 bits (NB_EUNSUPPORTED). What
 * would be NaN has a scale of NaN; a static scale is each row's, or NaN where the row has one. */
int nb_act_quantize(nb_tensor *codes, nb_tensor *scales, const nb_tensor *x, const nb_act_options *options);
/* lohi[0] becomes the smallest of itself and x's values (f32), lohi[1] the largest. NB_EFORMAT:
 * NaN or an infinity in x. */
int nb_act_extent(float lohi[2], const nb_tensor *x);

/* ---- forward pass (core/compute/) -------------------------------------------
 * Activations are float32 [m, features] tensors, m = sequences x length rows.
 * Weights are f32, bf16 or f16 and are widened exactly. No result depends on the
 * number of threads. */

/* y[m,n] = x[m,k] w[n,k]^T + bias[n] (f32, or NULL), float32 accumulation: OpenBLAS
 * over fixed tiles, plain loops without it. */
int nb_gemm(nb_tensor *y, const nb_tensor *x, const nb_tensor *w, const nb_tensor *bias);
/* Which matrix library products run on, or why none was found. */
const char *nb_blas_name(void);
/* Multiply-adds a second, times two, on that many threads: measured, about 50 ms. */
double nb_peak_flops(int threads);
/* Bytes a second at which so many threads read all of t (whole MiB of it) and do nothing else, once. */
double nb_peak_read(const nb_tensor *t, int threads);
/* The same of a file's bytes by read(2), a MiB at a time into a buffer of each thread; 0: it cannot be read. */
double nb_peak_file_read(const char *path, int threads);

/* y = weight * x / sqrt(mean(x^2) + eps), over each run of weight's size d; y may be x. */
int nb_rmsnorm(nb_tensor *y, const nb_tensor *x, const nb_tensor *weight, double eps);
/* Turns the heads of x [m, heads*head_dim] in place; row r stands at position
 * r % length. cosines and sines: f32 [positions, head_dim/2]. */
int nb_rope(nb_tensor *x, const nb_tensor *cosines, const nb_tensor *sines, int64_t head_dim, int64_t length);
/* Causal attention of m/length separate sequences: q and out [m, heads*d], k and v
 * [m, kv_heads*d]. sliding: how many keys a query sees, itself included; 0 = all. */
int nb_attention(nb_tensor *out, const nb_tensor *q, const nb_tensor *k, const nb_tensor *v, int64_t heads,
                 int64_t kv_heads, int64_t length, int64_t sliding, double scale);

/* y += x. */
int nb_add(nb_tensor *y, const nb_tensor *x);
/* gate = gate / (1 + exp(-gate)) * up. */
int nb_swiglu(nb_tensor *gate, const nb_tensor *up);
/* How many values are infinite or NaN; f32, bf16, f16. */
int64_t nb_count_nonfinite(const nb_tensor *x);
/* out[i] = table[ids[i]], widened to f32. */
int nb_gather(nb_tensor *out, const nb_tensor *table, const nb_tensor *ids);
/* y[ids[i]] += weights[i] * x[i], the product rounded to dtype (f32, f16 or bf16); weights
 * NULL: 1. ids don't descend; equal ones are added in their order. */
int nb_scatter_add(nb_tensor *y, const nb_tensor *x, const nb_tensor *ids, const nb_tensor *weights,
                   int dtype);
/* x[i] *= weights[i], rounded to dtype (f32, f16 or bf16). */
int nb_scale_rows(nb_tensor *x, const nb_tensor *weights, int dtype);

/* ---- mixture of experts (compute/moe_route.c, moe.c, moe_act.c; SYSTEMS 7) ------ */

enum { NB_ROUTE_SOFTMAX = 0, NB_ROUTE_SIGMOID = 1 };

typedef struct nb_moe_router {
  int32_t scoring;    /* NB_ROUTE_* */
  int32_t normalize;  /* the chosen weights sum to 1 */
  int64_t groups;     /* 0: none; else e/groups experts next to each other */
  int64_t top_groups; /* of which experts are chosen */
  float scale;        /* of the weights, at the end */
} nb_moe_router;

/* The top experts of each row's scores, best first; a tie goes to the lower: experts i32
 * [m, top], weights f32 [m, top] from logits f32 [m, e]. bias f32 [e] or NULL is added for
 * the choice only, not to the weights. A group's score is its best expert's, with a bias the
 * sum of its best two. */
int nb_moe_route(nb_tensor *experts, nb_tensor *weights, const nb_tensor *logits, const nb_tensor *bias,
                 const nb_moe_router *o);
/* Pairs by expert: those of expert x are rows[offsets[x] .. offsets[x+1]) with their
 * weights, rows ascending. rows i32, row_weights f32 [m*top]; offsets i32 [e+1]. map i32
 * [experts everywhere] or NULL: global id to one of these e, -1 = elsewhere. Ids outside
 * are left out when skip, else an error. */
int nb_moe_group(nb_tensor *rows, nb_tensor *row_weights, nb_tensor *offsets, const nb_tensor *experts,
                 const nb_tensor *weights, const nb_tensor *map, int skip);
/* How many places nb_moe_align may need. */
int64_t nb_moe_align_capacity(int64_t pairs, int64_t experts, int64_t block);
/* The flat positions of ids (i32) by expert, each expert's run padded to `block` with the
 * number of pairs: sorted i32 [capacity], block_experts i32 [ceil(capacity/block)] (-1: no
 * expert here), *total places in use. map i32 [experts] as above: the blocks of strangers
 * are marked -1, or with ignore their pairs left out and the others sorted by local id. */
int nb_moe_align(nb_tensor *sorted, nb_tensor *block_experts, int64_t *total, const nb_tensor *ids,
                 int64_t block, int64_t experts, const nb_tensor *map, int ignore);

/* Gated kinds take gates and ups: halves of a row, in pairs for swigluoai. */
enum {
  NB_MOE_SILU = 0,  /* silu(min(g, limit)) * clamp(u, limit) */
  NB_MOE_GELU,      /* gelu(g) * u */
  NB_MOE_GELU_TANH, /* its tanh form */
  NB_MOE_SWIGLUOAI, /* pairs: gc * sigmoid(alpha gc) * (clamp(u, limit) + beta), gc = min(g, limit) */
  NB_MOE_SWIGLUOAI_UNINTERLEAVE, /* the same on halves */
  NB_MOE_SWIGLUSTEP,             /* min(silu(g), limit) * clamp(u, limit) */
  NB_MOE_SILU_NO_MUL,
  NB_MOE_GELU_NO_MUL,
  NB_MOE_GELU_TANH_NO_MUL,
  NB_MOE_RELU2_NO_MUL, /* max(x, 0)^2 */
  NB_MOE_KINDS
};

typedef struct nb_moe_act {
  int32_t kind, dtype;      /* dtype: input and output are rounded to f16 or bf16; f32: not */
  float limit, alpha, beta; /* limit: infinity for none */
} nb_moe_act;

/* out [m,n] = activation of h [m,2n] (ungated: [m,n]); or of gates h [m,n] and ups up [m,n],
 * and then, as for ungated kinds, out may be h. */
int nb_moe_activation(nb_tensor *out, const nb_tensor *h, const nb_tensor *up, const nb_moe_act *act);

/* ---- 4-bit weights times int8 activations (layout/w4a8.c, compute/w4a8.c; SYSTEMS 6.2) ----
 * Codes are I8 -8..7 [n,k], k even; group divides k, -1: one a row. Scales [n, k/group],
 * bf16, or f32 with group -1; bias f32 [n]. */

/* U8 [n, k/2]: byte (o,c) = code(o,2c)+8 | (code(o,2c+1)+8) << 4; and back. NB_EFORMAT names
 * the first code outside. */
int nb_w4a8_nibbles(nb_tensor *nibbles, const nb_tensor *codes);
int nb_w4a8_codes(nb_tensor *codes, const nb_tensor *nibbles);
/* How many bytes nb_w4a8_pack writes, or an error. */
int64_t nb_w4a8_bytes(int64_t n, int64_t k, int64_t group);
/* A matrix as nb_w4a8_gemm reads it: packed U8 [bytes]; and back. bias may be NULL: zeros. */
int nb_w4a8_pack(nb_tensor *packed, const nb_tensor *nibbles, const nb_tensor *scales, const nb_tensor *bias,
                 int64_t group);
int nb_w4a8_unpack(nb_tensor *nibbles, nb_tensor *scales, nb_tensor *bias, const nb_tensor *packed,
                   int64_t group);
/* y f32 [m,n] = x [m,k] (f32, f16, bf16) times the packed weight, transposed, + bias: each row of x quantized
 * as nb_act_quant_int8 does, int32 sums within a group, groups in float32. A row with a value that isn't
 * finite gives NaN. The same bits on every instruction set and number of threads. */
int nb_w4a8_gemm(nb_tensor *y, const nb_tensor *x, const nb_tensor *packed, int64_t group);

/* For last hidden states x [m, k] and the output layer head [vocab, k]: nll f64 [m]
 * = -log softmax(x head^T)[targets] (0 where the target is negative) and top i32 [m],
 * the best token. Logits exist block by block only; sums are in double. */
int nb_logits_score(nb_tensor *nll, nb_tensor *top, const nb_tensor *x, const nb_tensor *head,
                    const nb_tensor *targets);
/* The same for two models, and kl f64 [m] = KL(p || q) over the vocabulary, in nats. */
int nb_logits_compare(nb_tensor *kl, nb_tensor *nll_p, nb_tensor *nll_q, nb_tensor *top_p, nb_tensor *top_q,
                      const nb_tensor *x_p, const nb_tensor *head_p, const nb_tensor *x_q,
                      const nb_tensor *head_q, const nb_tensor *targets);

/* ---- Marlin's product on the CPU (compute/marlin.c; SYSTEMS MRL-51) ----------- */

/* What a code is worth: code - zero-point (2^(bits-1) without zeros); the same after
 * nb_marlin_fp8_preprocess; the value of an f8_e4m3 or f4 number. */
enum { NB_MARLIN_INT = 0, NB_MARLIN_FOLDED = 1, NB_MARLIN_E4M3 = 2, NB_MARLIN_E2M1 = 3 };
/* What a stored scale is: a float; the int16 bits of nb_marlin_int8_scales; a byte
 * of nb_marlin_nvfp4_scales; an E8M0 byte of an MX format. */
enum { NB_MARLIN_FLOAT = 0, NB_MARLIN_INT16 = 1, NB_MARLIN_S0E5M3 = 2, NB_MARLIN_E8M0 = 3 };

/* One matrix as the kernels read it: words [k/16, n*bits/2], scales [G,n], zeros
 * [G, n/pf] words; perm and g_idx I32 [k] (both or neither; [0] means none): tile row
 * i is input perm[i], of group g_idx[i]; bias [n], permuted. NULL for what it hasn't.
 * Scales are multiplied by scale_factor, a power of two; products by global. */
typedef struct nb_marlin_weight {
  const nb_tensor *words, *scales, *zeros, *perm, *g_idx, *bias;
  int64_t k, n;
  double scale_factor, global;
  int32_t bits, a8, code, scale, k_full;
} nb_marlin_weight;

/* y F32 [m,no] = (x [m,ki] times the weight) * row_scale[m] (F32 [m,1], or NULL) * global
 * + bias; x f32, f16 or bf16. Inputs from ki to k count as 0, outputs from no to n are
 * left out. Read strip by strip: per thread at most 3 MiB of floats, and x once more
 * where it is not f32 or perm is given. */
int nb_marlin_gemm(nb_tensor *y, const nb_tensor *x, const nb_marlin_weight *w, const nb_tensor *row_scale);

enum { NB_ACT_STATIC = 0, NB_ACT_TENSOR = 1, NB_ACT_TOKEN = 2, NB_ACT_GROUP = 3 };
/* x [m,k] f16, bf16 or f32 -> q I8 [m,k], scales F32 [m,1] = max(|x|,1e-10)/127*global. MRL-45. */
int nb_act_quant_int8(nb_tensor *q, nb_tensor *scales, const nb_tensor *x, float global);
/* q F8_E4M3 [m,k]. mode: one given scale, one of the tensor, one a token [m,1], or one of 128 columns
 * [m, ceil(k/128)], max(|x|,1e-10)/448. NaN has NaN's code. Of both functions: what shares a scale that is made here with a
 * NaN or infinity has the scale NaN. */
int nb_act_quant_fp8(nb_tensor *q, nb_tensor *scales, const nb_tensor *x, int mode);
/* NVFP4 for the tensor cores: q U8 [m,k/2], the even column in the low nibble; scales F8_E4M3 of 16 columns, as
 * nb_swizzle_blockscale gives them, [m up to 128, k/16 up to 4]: e4m3(max(|x|)/6 * global), 0 becomes 0.125; what shares its
 * scale with a NaN or infinity has the scale NaN. global: the layer's, above 0. k a multiple of 16. CTM-NVFP4-13. */
int nb_act_quant_fp4(nb_tensor *q, nb_tensor *scales, const nb_tensor *x, float global);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
