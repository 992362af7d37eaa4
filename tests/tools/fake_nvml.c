// Stands where NVML would: one GPU that is well, or has the troubles that FAKE_NVML names, so that what is made of the
// answers is tested without a GPU.
#include <stdlib.h>
#include <string.h>

typedef void* Device;
typedef struct {
  char legacy_bus_id[16];
  unsigned domain, bus, device, device_id, subsystem_id;
  char bus_id[32];
} PciInfo;
typedef struct {
  unsigned long long total, free, used;
} MemoryInfo;

static int gpu;

static int has(const char* trouble) {
  const char* all = getenv("FAKE_NVML");
  return all && strstr(all, trouble) != NULL;
}

static int put(char* to, unsigned size, const char* text) {
  if (strlen(text) + 1 > size) return 7;
  strcpy(to, text);
  return 0;
}

static int tell(unsigned* to, unsigned value) {
  *to = value;
  return 0;
}

int nvmlInit_v2(void) { return has("no-driver") ? 9 : 0; }
int nvmlShutdown(void) { return 0; }
const char* nvmlErrorString(int status) { return status == 9 ? "Driver Not Loaded" : "Unknown Error"; }
int nvmlSystemGetDriverVersion(char* text, unsigned size) { return put(text, size, "999.12"); }
int nvmlDeviceGetCount_v2(unsigned* n) { return tell(n, 1); }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device* device) {
  *device = &gpu;
  return index == 0 ? 0 : 2;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char* id, Device* device) {
  *device = &gpu;
  return strcmp(id, "0000:17:00.0") == 0 ? 0 : 6;
}
int nvmlDeviceGetName(Device d, char* text, unsigned size) { return (void)d, put(text, size, "Fake GPU"); }
int nvmlDeviceGetCudaComputeCapability(Device d, int* major, int* minor) {
  (void)d;
  *major = 9, *minor = 0;
  return 0;
}
int nvmlDeviceGetPciInfo_v3(Device d, PciInfo* pci) {
  (void)d;
  strcpy(pci->bus_id, "00000000:17:00.0");
  return 0;
}
int nvmlDeviceGetMemoryInfo(Device d, MemoryInfo* m) {
  (void)d;
  m->total = 80ull << 30;
  m->free = has("full") ? 8ull << 30 : 79ull << 30;
  m->used = m->total - m->free;
  return 0;
}
int nvmlDeviceGetClockInfo(Device d, int type, unsigned* mhz) { return (void)d, tell(mhz, type == 1 ? 1755 : 2619); }
int nvmlDeviceGetMaxClockInfo(Device d, int type, unsigned* mhz) { return (void)d, tell(mhz, type == 1 ? 1980 : 2619); }
int nvmlDeviceGetTemperature(Device d, int sensor, unsigned* t) {
  return (void)d, (void)sensor, tell(t, has("hot") ? 86 : 41);
}
int nvmlDeviceGetTemperatureThreshold(Device d, int type, unsigned* t) {
  (void)d;
  return type == 1 ? tell(t, 87) : 3;
}
int nvmlDeviceGetTotalEnergyConsumption(Device d, unsigned long long* millijoules) {
  static unsigned long long total = 1000;
  (void)d;
  if (has("no-counter")) return 3;
  *millijoules = total += 5000;
  return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(Device d, unsigned long long* bits) {
  (void)d;
  *bits = has("throttled") ? 0x4 | 0x40 : 0x1;
  return 0;
}
int nvmlDeviceGetEccMode(Device d, unsigned* now, unsigned* pending) { return (void)d, tell(pending, 1), tell(now, 1); }
int nvmlDeviceGetTotalEccErrors(Device d, int type, int counter, unsigned long long* n) {
  (void)d;
  *n = has("ecc") && type == 1 && counter == 0 ? 3 : 0;
  return 0;
}
int nvmlDeviceGetPowerUsage(Device d, unsigned* mw) {
  (void)d;
  return has("no-power") ? 3 : tell(mw, 350000);
}
int nvmlDeviceGetEnforcedPowerLimit(Device d, unsigned* mw) {
  return (void)d, tell(mw, has("capped") ? 400000 : 700000);
}
int nvmlDeviceGetPowerManagementDefaultLimit(Device d, unsigned* mw) { return (void)d, tell(mw, 700000); }
int nvmlDeviceGetPersistenceMode(Device d, unsigned* on) { return (void)d, tell(on, 1); }
int nvmlDeviceGetCurrPcieLinkGeneration(Device d, unsigned* n) { return (void)d, tell(n, 5); }
int nvmlDeviceGetCurrPcieLinkWidth(Device d, unsigned* n) { return (void)d, tell(n, has("narrow") ? 4 : 16); }
int nvmlDeviceGetMaxPcieLinkGeneration(Device d, unsigned* n) { return (void)d, tell(n, 5); }
int nvmlDeviceGetMaxPcieLinkWidth(Device d, unsigned* n) { return (void)d, tell(n, 16); }
