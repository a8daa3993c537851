// The camera: a picture a second is answered, as long as the page is looked at.
import { element } from "./elements.js";
import { say } from "./words.js";

const PAUSE = 1000; // ms between pictures
const LONGEST = 1280; // pixels of a picture's longer side

// Whether the browser opens the camera for this page: at localhost, or over https.
export const allowed = () => window.isSecureContext && Boolean(navigator.mediaDevices?.getUserMedia);

export class Camera {
  // seen: called with each picture (a File) while the camera runs; awaited before the next.
  constructor(video, seen) {
    Object.assign(this, { video, seen, stream: null });
  }

  async start() {
    const wanted = { facingMode: "environment", width: { ideal: LONGEST } };
    this.stream = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
    this.video.srcObject = this.stream;
    await this.video.play();
    this.#turn(this.stream);
  }

  stop() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = this.video.srcObject = null;
  }

  // What the camera shows now, as a JPEG.
  async picture() {
    const { videoWidth: width, videoHeight: height } = this.video;
    const scale = Math.min(1, LONGEST / Math.max(width, height));
    const canvas = element("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
    canvas.getContext("2d").drawImage(this.video, 0, 0, canvas.width, canvas.height);
    const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
    const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "-");
    return new File([blob], `${say("frame")} ${time}.jpg`, { type: "image/jpeg" });
  }

  async #turn(stream) {
    while (this.stream === stream) {
      const begun = performance.now();
      if (!document.hidden && this.video.videoWidth) await this.seen(await this.picture());
      await new Promise((done) => setTimeout(done, Math.max(100, PAUSE - (performance.now() - begun))));
    }
  }
}
