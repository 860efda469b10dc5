/* Have callgrind tell apart which Python function is at work. scripts/profile_instructions.py says how.

   CPython runs a function within the frame of the C function that runs its caller, so that callgrind sees one
   for all. With a function of ours in its place (PEP 523) each is run by itself, which costs a call about 40
   instructions; at its start and its end callgrind writes down what was counted since, with the name. */

#define Py_BUILD_CORE_MODULE
#include <Python.h>
#include <internal/pycore_frame.h>
#include <internal/pycore_pystate.h>
#include <valgrind/callgrind.h>

#define DEEPEST 200
static char names[DEEPEST][256] = {"(event loop)"};
static int depth = 0;
static PyThreadState *counted; /* what others do falls to whatever is at work in this one */
static _PyFrameEvalFunction plain;

static PyObject *evaluate(PyThreadState *thread, _PyInterpreterFrame *frame, int throws)
{
    if (thread != counted || depth == DEEPEST - 1)
        return plain(thread, frame, throws);
    CALLGRIND_DUMP_STATS_AT(names[depth]);
    PyCodeObject *code = frame->f_code;
    const char *file = strstr(PyUnicode_AsUTF8(code->co_filename), "llmgateway/");
    snprintf(names[++depth], sizeof names[0], "%s %s", file ? file : "-", PyUnicode_AsUTF8(code->co_qualname));
    CALLGRIND_ZERO_STATS;
    PyObject *result = plain(thread, frame, throws);
    CALLGRIND_DUMP_STATS_AT(names[depth]);
    depth--;
    CALLGRIND_ZERO_STATS;
    return result;
}

static PyObject *begin(PyObject *module, PyObject *apart)
{
    counted = PyThreadState_Get();
    if (PyObject_IsTrue(apart))
        _PyInterpreterState_SetEvalFrameFunc(PyInterpreterState_Get(), evaluate);
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_ZERO_STATS;
    Py_RETURN_NONE;
}

static PyObject *end(PyObject *module, PyObject *nothing)
{
    CALLGRIND_DUMP_STATS_AT(names[depth]);
    CALLGRIND_DUMP_STATS_AT("end");
    CALLGRIND_STOP_INSTRUMENTATION;
    _PyInterpreterState_SetEvalFrameFunc(PyInterpreterState_Get(), plain);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"begin", begin, METH_O, "Count from now on; each function apart, if that is true."},
    {"end", end, METH_NOARGS, "Count no more."},
    {NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "profile_hook", NULL, -1, methods};

PyMODINIT_FUNC PyInit_profile_hook(void)
{
    plain = _PyInterpreterState_GetEvalFrameFunc(PyInterpreterState_Get());
    return PyModule_Create(&module);
}
