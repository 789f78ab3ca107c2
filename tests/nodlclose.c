// Linked into sanitizer builds only: keeps Open MPI's plug-ins mapped, so that the leak checker can
// name and suppress what they leave behind.
int dlclose(void *handle);
int dlclose(void *handle) {
    (void)handle;
    return 0;
}
