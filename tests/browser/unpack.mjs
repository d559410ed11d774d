// Unpacks the Chromium of @sparticuz/chromium, with the libraries and fonts that it needs, into TMPDIR.
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import chromium, { inflate } from "@sparticuz/chromium";

const build = dirname(fileURLToPath(import.meta.resolve("@sparticuz/chromium")));
await chromium.executablePath();
// What a small system does not have: NSS, NSPR, expat.
await inflate(join(build, "../bin/al2023.tar.br"));
