// What transformers.js makes of exported models: node run.mjs MODELS IMAGE..., MODELS a folder of folders, prints JSON.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { AutoProcessor, RawImage, env, pipeline } from "@huggingface/transformers";

const [models, ...paths] = process.argv.slice(2);
env.localModelPath = models;
env.allowRemoteModels = false;

const images = await Promise.all(paths.map((path) => RawImage.read(path)));
const results = {};
for (const name of readdirSync(models)) {
  const processor = await AutoProcessor.from_pretrained(name);
  const { pixel_values } = await processor(images);
  const result = { pixel_values: pixel_values.tolist() };
  const { architectures } = JSON.parse(readFileSync(join(models, name, "config.json"), "utf8"));
  if (architectures[0] === "ViTForImageClassification") {
    const classify = await pipeline("image-classification", name);
    result.classes = await classify(images, { top_k: null });
    result.logits = (await classify.model({ pixel_values })).logits.tolist();
  } else {
    const extract = await pipeline("image-feature-extraction", name);
    result.last_hidden_state = (await extract(images)).tolist();
    result.pooler_output = (await extract(images, { pool: true })).tolist();
  }
  results[name] = result;
}
console.log(JSON.stringify(results));
