// OpenMP as kernels/parallel.h uses it, for ThreadSanitizer. What gcc's own library puts its threads in order by, the sanitizer does
// not see, so that every loop would look like a race. Preloaded, this takes its place: threads that are created and joined.
#include <pthread.h>
#include <stdlib.h>

typedef struct {
    void (*loop)(void*);
    void* data;
    unsigned number, threads;
} Part;

static _Thread_local Part mine = {.threads = 1};

int omp_get_thread_num(void) { return (int)mine.number; }
int omp_get_num_threads(void) { return (int)mine.threads; }

static void* run(void* part) {
    mine = *(Part*)part;
    mine.loop(mine.data);
    return NULL;
}

void GOMP_parallel(void (*loop)(void*), void* data, unsigned threads, unsigned flags) {
    (void)flags;
    Part parts[threads], before = mine;
    pthread_t others[threads];
    for (unsigned i = 0; i < threads; i++) {
        parts[i] = (Part){loop, data, i, threads};
        if (i && pthread_create(&others[i], NULL, run, &parts[i])) abort();
    }
    run(&parts[0]);
    for (unsigned i = 1; i < threads; i++) pthread_join(others[i], NULL);
    mine = before;
}
