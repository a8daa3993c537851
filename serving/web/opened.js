// A page that was opened as a file may not load the parts of a program: then it says what to do.
// Not a module, which such a page could not load either.
if (location.protocol === "file:") {
  addEventListener("DOMContentLoaded", () => {
    const chinese = /^zh/i.test(navigator.language);
    const box = document.getElementById("trouble");
    box.hidden = false;
    box.textContent = chinese
      ? "瀏覽器不讓直接開啟的檔案執行程式：請在這個資料夾中執行 python -m http.server，再開啟 http://localhost:8000。"
      : "Browsers run no such page from a file: type python -m http.server in this folder, then open http://localhost:8000.";
  });
}
