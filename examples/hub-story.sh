#!/usr/bin/env bash
# The whole story of a hub: three people and two attackers evolve MiniLM, and a release is made again from its record.
#
#     COFUSE_TASKS=FOLDER examples/hub-story.sh [DIR]
#
# Needs cofuse[all], and the tasks sst2, isear and trec_coarse in FOLDER. Prints each command before its output; some ten minutes.
set -euo pipefail
DIR=${1:-runs/hub-story}
PORT=${PORT:-8931}
: "${COFUSE_TASKS:?names the folder of tasks}"
COFUSE_TASKS=$(realpath "$COFUSE_TASKS"); export COFUSE_TASKS
mkdir -p "$DIR"; cd "$DIR"
HUB=http://127.0.0.1:$PORT MODEL=http://127.0.0.1:$PORT/ann/minilm
export XDG_CONFIG_HOME=$PWD/config XDG_CACHE_HOME=$PWD/cache
FEW="--examples 400 --steps 25 --max-length 32"

run() { printf '\n$ %s\n' "$*"; "$@"; }
as() { COFUSE_TOKEN=$(cat "$1.token"); export COFUSE_TOKEN; printf '\n--- %s ---' "$1"; }

# A hub, and an account for everybody.
for who in ann:maintain bob:contribute eve:contribute kim:contribute mallory:contribute oscar:contribute; do
    cofuse token create --data hub --name "${who%:*}" --role "${who#*:}" | tail -n 1 > "${who%:*}.token"
done
printf '$ cofuse serve --data hub --port %s &\n' "$PORT"
COFUSE_HUB_TASKS=$COFUSE_TASKS cofuse serve --data hub --port "$PORT" 2> serve.log &
SERVER=$!
trap 'kill $SERVER; wait $SERVER' EXIT
until curl -sf "$HUB/healthz" > /dev/null; do sleep 0.2; done

as ann
python - << 'PYTHON'
import cofuse
cofuse.open("hf:sentence-transformers/all-MiniLM-L6-v2").save("minilm")
PYTHON
run cofuse init
run cofuse commit minilm -m "all-MiniLM-L6-v2"
printf "\n\$ curl -X POST -d '{\"name\": \"minilm\"}' %s/api/v1/repositories\n" "$HUB"
curl -sf -X POST -H "Authorization: Bearer $COFUSE_TOKEN" -H "Content-Type: application/json" \
    -d '{"name": "minilm"}' "$HUB/api/v1/repositories"
run cofuse remote add origin "$MODEL"
run cofuse push
printf 'round: {contributions: 3}\nscreen: {direction: refuse}\ngate: {policy: {max_drop: 5, max_mean_drop: 3}, on_undecided: publish}\n' > policy.yaml
printf 'name: story\ntasks: [rotten_tomatoes]\nprotocols: {oldhead: {examples: 500, test: 500}}\n' > suite.yaml
run cofuse policy suite "$MODEL" suite.yaml
run cofuse policy set "$MODEL" policy.yaml

# Two who do not mean well: one sends what is not finite, one the opposite of what it learned.
python - << 'PYTHON'
import shutil
import cofuse
from safetensors.torch import load_file, save_file
for who in ("mallory", "oscar"):
    shutil.copytree("minilm", who, dirs_exist_ok=True)
weights = load_file("minilm/model.safetensors")
weights["encoder.layer.0.output.dense.bias"][7] = float("nan")
save_file(weights, "mallory/model.safetensors")
PYTHON
as mallory
run cofuse contribute "$MODEL" --from mallory --title "Much better" --wait || true

as bob
run cofuse contribute "$MODEL" --task sst2 $FEW --title "Films, sst2" --data "400 sentences of sst2" --licence cc0-1.0
as eve
run cofuse contribute "$MODEL" --task isear $FEW --title "Feelings" --data "400 reports of isear" --folder eve.contribution --wait

# Oscar trains on Bob's task, then turns his change round.
as oscar
run cofuse finetune minilm --task sst2 $FEW --seed 5 -o oscar-tuned
python - << 'PYTHON'
from safetensors.torch import load_file, save_file
import cofuse
base = load_file("minilm/model.safetensors")
tuned = cofuse.body(cofuse.open("oscar-tuned/"), like=cofuse.open("minilm/"))
save_file({name: 2 * base[name] - tuned.read(name) if base[name].is_floating_point() else base[name] for name in base},
          "oscar/model.safetensors")
PYTHON
run cofuse contribute "$MODEL" --from oscar --title "Films again" --wait || true

as kim
run cofuse contribute "$MODEL" --task trec_coarse $FEW --title "Questions" --data "400 questions" --folder kim.contribution --wait

as ann
until cofuse releases "$MODEL" --json | grep -q v0; do sleep 1; done
run cofuse contributions list "$MODEL"
run cofuse round list "$MODEL"
run cofuse releases "$MODEL"
printf '\n$ HF_ENDPOINT=%s python -c "AutoModel.from_pretrained(...)"\n' "$HUB"
HF_ENDPOINT=$HUB HF_HOME=$PWD/hf python - << 'PYTHON'
from transformers import AutoModel
print(AutoModel.from_pretrained("ann/minilm", revision="v0.1.0").num_parameters(), "parameters")
PYTHON
VERSION=$(cofuse releases "$MODEL" --json | grep -o 'v[0-9.]*[0-9]' | head -n 1)
run cofuse replay "$MODEL@$VERSION"
run cofuse revoke "$MODEL" eve -m "her data was not hers to use" --wait
run cofuse releases "$MODEL"
LATEST=$(cofuse releases "$MODEL" --json | grep -o 'v[0-9.]*[0-9]' | head -n 1)
run cofuse replay "$MODEL@$LATEST"
run cofuse rollback "$MODEL" "$VERSION" --wait || true
