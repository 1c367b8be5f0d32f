
int main(int count, char **words) {
    int runs = count > 1 ? std::atoi(words[1]) : 20;
    int device = count > 2 ? std::atoi(words[2]) : 0;
    int answer = static_cast<int>(aclInit(nullptr));
    if (answer != 0 && answer != 100002) fail("aclInit", answer);
    DO(aclrtSetDevice(device));
    settings();
    aclrtStream stream = nullptr;
    DO(aclrtCreateStream(&stream));
    values();
    for (int space = 0; space < 5; ++space) {
        if (before[space].empty()) continue;
        void *fresh = nullptr;
        DO(aclrtMalloc(&fresh, before[space].size(), ACL_MEM_MALLOC_HUGE_FIRST));
        memory[space] = static_cast<char *>(fresh);
    }
    const std::vector<Output> outputs = expected();
    int wrongRuns = 0;
    for (int run = 0; run < runs; ++run) {
        for (int space = 0; space < 5; ++space) {
            size_t bytes = before[space].size();
            if (bytes) DO(aclrtMemcpy(memory[space], bytes, before[space].data(), bytes, ACL_MEMCPY_HOST_TO_DEVICE));
        }
        calls(stream);
        size_t wrong = 0;
        for (const Output &output : outputs) {
            std::vector<char> bytes(output.want.size() * (std::strcmp(output.type, "bf16") ? 4 : 2));
            if (bytes.empty()) continue;
            DO(aclrtMemcpy(bytes.data(), bytes.size(), memory[output.space] + output.byte, bytes.size(),
                           ACL_MEMCPY_DEVICE_TO_HOST));
            // The first run is told, and the first wrong one.
            size_t here = wrongIn(output, bytes.data(), run == 0);
            if (here && run > 0 && wrongRuns == 0) wrongIn(output, bytes.data(), true);
            wrong += here;
        }
        wrongRuns += wrong != 0;
    }
    std::printf("%d of %d run(s) are wrong\n", wrongRuns, runs);
    std::fflush(stdout);
    aclFinalize();
    return wrongRuns ? 1 : 0;
}
